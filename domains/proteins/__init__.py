"""Proteins: chains, files, data sets, motifs, evaluators and the adapter to the core."""
