"""A memory that a server keeps: sessions, documents and answers over HTTP. No model is loaded here, and no torch.

May import: talk's messages and tools, state's plain values, stores' names, errors. Hands out: `engine.RemoteEngine`.
A new thing to ask a server for goes here, with the same name and the same errors as where it is done in this process.
"""
