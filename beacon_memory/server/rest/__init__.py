"""Memory's own interface: sessions, their messages and branches, documents, search.

May import: what all requests share (`visit`, `errors`, `limits`), sessions, state, talk. Hands out: routers.
A new thing to do with a session or a document over HTTP goes here.
"""
