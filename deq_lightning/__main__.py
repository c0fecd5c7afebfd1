"""`python -m deq_lightning`."""

from deq_lightning.cli import main

if __name__ == "__main__":
    main()
