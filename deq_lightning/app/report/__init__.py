"""`python -m deq_lightning report`: what a run, or a comparison, has come to, as one page with pictures."""
