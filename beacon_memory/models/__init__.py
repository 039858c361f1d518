"""A language model that folds and answers: weights, adapters, batches, generation. It holds no session.

May import: fold, state. Hands out: `model.BeaconModel`.
A new model family, a new way to load one, or a new way to generate goes here.
"""
