"""What a session is: slots and ids as values (`BeaconState`, `SessionHead`), and the bytes they are stored as.

May import: config, errors. Hands out: `state.BeaconState`, `head.SessionHead`, `codec`, `archive`.
A new field, slot format, or rule for what is folded coarser first (`budget.py`) goes here.
"""
