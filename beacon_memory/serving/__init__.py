"""Many callers of one model: engines that frameworks share, the threads that work for them, and fold workers.

May import: sessions and every room below it. Hands out: `engine.BeaconEngine`, `folding.FoldWorker`.
A new serving backend goes here.
"""
