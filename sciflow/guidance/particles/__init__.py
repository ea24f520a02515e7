"""Weighted particles: several trajectories a sample, exchanged as they go."""
