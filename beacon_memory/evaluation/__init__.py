"""What a memory is worth: tasks, the methods it is compared with, and the tables and plots of `beacon-memory eval`.

May import: models, fold, state, `talk`. Hands out: `runner`, and `reporting` for what is done with its results.
A new task or a new rival method goes here.
"""
