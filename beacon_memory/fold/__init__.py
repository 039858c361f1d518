"""How a window of tokens becomes slots: layouts, anchors, and beacons on a stock transformers model.

May import: state, config, errors. Hands out: `fold.fold`, `attention.Beacons`, `prefix.Prefix`.
A new layout, or a new rule for which tokens become slots (an eviction rule, an anchor rule), goes here.
"""
