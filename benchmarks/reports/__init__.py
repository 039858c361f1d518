"""Documents from results: the generated tables of README.md, benchmarks/README.md and docs/, and the plots."""
