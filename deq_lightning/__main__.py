"""`python -m deq_lightning`."""

from deq_lightning.app.cli import main

if __name__ == "__main__":
    main()
