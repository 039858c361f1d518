"""Many callers of one model: engines that frameworks share, requests in batches, work on one thread.

May import: sessions and every room below it. Hands out: `engine.BeaconEngine`.
A new serving backend goes here.
"""
