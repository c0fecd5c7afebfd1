"""Inverse problems: an image is found of which an observation is given."""
