"""A language model that folds and answers: weights, adapters, batches, generation. It holds no session.

May import: fold, state. Hands out: `model.BeaconModel`.
A new way to load a model, or a new way to generate goes here.
"""
