"""What whoever runs the server sees of it: metrics, logs and traces, all without anyone's words.

May import: stores; the types of sessions. Hands out: `Metrics`, `TimedStore`, `Traces`, `Watched`, `exported`, …
A new metric goes here, into `metrics.py`; what it counts is counted where it happens.
"""
