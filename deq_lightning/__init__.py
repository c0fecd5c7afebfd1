"""Training implicit (deep equilibrium) models with PyTorch Lightning.

Public names are imported when they are first used (PEP 562), so that importing the package costs nothing.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of the stub beside this file
__version__ = version("deq-lightning")
