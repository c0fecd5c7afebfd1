"""The DEQ-Transformer."""
