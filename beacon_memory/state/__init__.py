"""What a session is, as values (`BeaconState`, `SessionHead`) and as the bytes they are stored as. No model, no store.

May import: config, errors. Hands out: `state.BeaconState`, `head.SessionHead`, `codec`, `archive`.
A new field of a session, a new slot format, or a new rule for which old memories get coarser (`budget.py`) goes here.
"""
