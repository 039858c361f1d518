"""Answers that are being made, all in the same passes of the model: who comes joins at the next step.

May import: what models/ may. Hands out: `running.Running`, `stream.Stream`, `line.Line`.
A new thing that is done for several answers at once goes here; what draws and ends each, into generation.py.
"""
