"""Known parts, references and starts: changing what there is."""
