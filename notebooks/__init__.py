"""Notebooks, one a use; ``python -m notebooks.run`` executes them all."""
