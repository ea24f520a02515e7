"""Given a measurement y = H(x) + noise, or a constraint."""
