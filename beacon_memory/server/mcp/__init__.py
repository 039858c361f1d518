"""A memory for agents: five tools of the Model Context Protocol, over HTTP at `/mcp` and over a process's pipes.

May import: memory's own interface (`rest/`), what all requests share. Hands out: `mount`, `serve_pipes`.
A new tool goes here, in `tools.py`; what it does belongs to memory's own interface.
"""
