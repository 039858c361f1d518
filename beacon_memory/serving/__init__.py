"""Many callers of one model: engines that frameworks share, requests in batches, work on one thread.

May import: sessions and what is below. Hands out: `engine.BeaconEngine`.
A new server endpoint or serving backend goes here.
"""
