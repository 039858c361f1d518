"""How a window of tokens becomes slots: layouts, anchors, and beacons on a stock transformers model.

May import: state, config, errors. Hands out: `fold.fold`, `attention.Beacons`, `prefix.Prefix`.
A new model family (`family.py`), layout, or rule for which tokens become slots (of anchors, of eviction) goes here.
"""
