"""Text, as streams of words."""
