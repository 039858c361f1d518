"""What becomes of an evaluation's results: figures with intervals, Markdown tables, plots, files to go on from.

May import: evaluation's `items` and `methods`, config, errors. Hands out: `results.Results`, `tables`, `plots`.
A new figure, table or plot goes here.
"""
