"""Molecules: records, files, data sets, oracle, evaluators and the adapter to the core."""
