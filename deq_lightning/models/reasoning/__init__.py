"""Reasoners: equilibria that are solved longer for harder problems."""
