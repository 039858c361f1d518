"""Making a memory better: fitting anchors, training beacons.

May import: models, fold, state, and `talk` where data has messages. Hands out: `fit`, `trainer`.
A new objective, kind of example or recipe goes here.
"""
