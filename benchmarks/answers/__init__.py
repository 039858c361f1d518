"""What several answers at once, and looking again, cost: to be run alone, each prints its table."""
