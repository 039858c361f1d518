"""Answers that are being made, all in the same passes of the model: who comes joins at the next step.

transformers' `generate()` takes no one in once it has begun, so the steps are made here, from stock forwards. What
draws and ends an answer is transformers' own (generation.py).
"""
