"""Making a memory better: fitting the anchors' scorer in minutes, training beacons in hours.

May import: models, fold, state, and `talk` where data has messages. Hands out: `fit`, `trainer`.
A new objective, kind of training example or recipe goes here.
"""
