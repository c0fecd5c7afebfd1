"""Monotone operator equilibrium networks."""
