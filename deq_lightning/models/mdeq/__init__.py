"""Multiscale deep equilibrium models."""
