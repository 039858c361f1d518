"""The front door: a memory, its sessions, and what can be done with one (add, ask, rewind, repair, documents).

May import: talk, models, stores, state. Hands out: `memory.BeaconMemory`, `session.Session`, `turn.Turn`.
A new thing to do with a session goes here; what stands in a prompt in `prompt.py`, how an answer is made in `turn.py`.
"""
