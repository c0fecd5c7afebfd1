"""Callbacks that monitor, guard and tune a run, and write its predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of the stub beside this file
