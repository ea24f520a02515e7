"""Several models as one: superposition, products, conditions."""
