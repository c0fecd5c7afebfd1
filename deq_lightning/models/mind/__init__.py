"""MIND: fixed-point layers that a second network turns on for the samples that need them."""
