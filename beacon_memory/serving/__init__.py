"""Many callers of one model: engines that frameworks share, and the threads that work for them.

May import: sessions and every room below it. Hands out: `engine.BeaconEngine`.
A new serving backend goes here.
"""
