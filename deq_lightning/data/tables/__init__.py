"""Tables of numbers and text, and arrays."""
