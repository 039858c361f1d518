"""A memory that looks again: which passages a question is about, reading them raw, and whose words they are.

May import: prompts, models, state, talk. Hands out: `look_again`, `search`, `origins_of`, `contents_of`.
A new way to find passages (by words, by both), or more that is known of a source, goes here.
"""
