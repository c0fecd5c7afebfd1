"""Puzzles: one answer, with a label for each position."""
