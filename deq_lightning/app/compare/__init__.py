"""`python -m deq_lightning compare`: a run for every combination of settings, and what they come to."""
