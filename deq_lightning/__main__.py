"""`python -m deq_lightning`."""

from deq_lightning.app.front import main

if __name__ == "__main__":
    main()
