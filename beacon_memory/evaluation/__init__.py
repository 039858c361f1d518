"""What a memory is worth: tasks, the methods it is compared with, and the runner behind `beacon-memory eval`.

May import: models, fold, state, `talk`. Hands out: `runner`, and `reporting` for what is done with its results.
A new task (`tasks/`) or a new method to compare with (`methods.py`) goes here.
"""
