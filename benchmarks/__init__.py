"""What beacon-memory costs and what it is worth, beside what a user would pick instead.

Each module is run from the root of the repository: `python -m benchmarks.speed.run`. README.md says what lies where.
"""
