"""The front door: a memory, its sessions, and what can be done with one (add, ask, rewind, repair, documents).

May import: talk, models, stores, state. Hands out: `memory.BeaconMemory`, `session.Session`, `turn.Turn`.
Every prompt is made in `prompt.py`, every answer asked for in `turn.py`. A new thing to do with a session goes here.
"""
