"""The page at `/`: chat, and the memory laid open. HTML, CSS and JavaScript that ask the interface as any client.

May import: what all requests share. Hands out: `files.router`.
A new file of the page goes here; what it asks for belongs to memory's own interface (`rest/`).
"""
