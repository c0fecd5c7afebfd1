"""`python -m deq_lightning search`: settings chosen by Optuna."""
