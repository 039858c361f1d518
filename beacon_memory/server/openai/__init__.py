"""OpenAI's interface: chat completions and the list of models, as its clients send and read them.

May import: what all requests share (`visit`, `errors`, `limits`), sessions, talk. Hands out: routers.
A new endpoint of OpenAI's goes here.
"""
