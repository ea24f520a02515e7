"""One script a claim: ``python -m benchmarks.NAME [--quick]`` prints a table and, last, JSON."""
