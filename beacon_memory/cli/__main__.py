"""`python -m beacon_memory.cli` is `beacon-memory`."""

from beacon_memory.cli import main

main()
