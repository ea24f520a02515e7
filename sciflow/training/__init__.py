"""Training: Lightning module and data module, exact resume at any step."""
