"""Seconds and memory: folding, turns, decoding, batches, importing. `run` measures them, and the stores, in one go."""
