"""Fixed-point networks of the JFB paper."""
