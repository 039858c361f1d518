"""A memory over HTTP: OpenAI's interface, memory's own, API keys with namespaces, limits.

May import: serving and every room below it. Hands out: `app.make_app`, `run.serve`, `keys.Keys`.
A new interface goes here, as a folder of routes; what all requests share lies beside this file.
"""
