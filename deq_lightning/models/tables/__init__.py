"""Equilibrium networks for rows of numbers."""
