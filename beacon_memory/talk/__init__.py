"""Messages, files and tools as a model reads them: chat templates to ids, message lists matched, answers parsed.

May import: models. Hands out: `transcript.Transcript`, `history.match`, `tools`, `structured.Grammar`, `sources`.
A new chat template, tool format or kind of source goes here.
"""
