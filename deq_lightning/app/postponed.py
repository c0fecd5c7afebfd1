"""Import Lightning without modules that the start of the command line hardly needs.

Most of the seconds that `import pytorch_lightning` takes beyond those of torch go to three modules:

- `scipy.signal`: TorchMetrics gives it back a name that SciPy has dropped, for one package of audio metrics;
- `torchvision`: TorchMetrics takes a few names of it for two image metrics;
- `torch._dynamo`: Lightning takes a class of it to recognise compiled modules, and keeps it from compiling a method.

While Lightning is imported, placeholders stand for them, with the names that are known to be taken in a form that
imports the real module when it is used. Afterwards they are gone, and `import torchvision` means the real one. If a
release asks a placeholder for anything else, Lightning is imported as ever, which only costs time.

This is a side effect on the whole process, so the program alone does it: `import deq_lightning` never does.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

LIGHTNING = {"pytorch_lightning", "lightning_fabric", "torchmetrics"}


class Unforeseen(BaseException):
    """Something was asked of a placeholder that it does not have; no `except ImportError` may hide it."""


class _NoPath:
    """The path of a package whose submodules are not to be found."""

    def __iter__(self) -> NoReturn:
        raise Unforeseen


class Placeholder(ModuleType):
    """Stands for a module while others are imported; those that keep it reach the real module through it."""

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # for those who ask whether there is such a module
        self.__dict__.update(names, __path__=_NoPath())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by code that looks through all modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            raise Unforeseen(f"{self.__name__}.{name}")
        return getattr(import_module(self.__name__), name)


class _Compiled(type):
    """Recognises dynamo's compiled modules; there are none before dynamo is imported."""

    def __instancecheck__(cls, instance: Any) -> bool:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None or isinstance(dynamo, Placeholder):
            return False
        return isinstance(instance, dynamo.OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """Stands for `torch._dynamo.OptimizedModule` in `isinstance`, which is all that Lightning takes it for."""


class _Later:
    """A function or class of a module that is imported when it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._names = module, name

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._real()(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        module, name = self._names
        return getattr(import_module(module), name)


def _disable(fn: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
    """Do what `torch._dynamo.disable` does, by torch's own way to do so before dynamo is imported."""
    return import_module("torch._compile")._disable_dynamo(fn, recursive)


def _placeholders() -> list[Placeholder]:
    networks = {name: _Later("torchvision.models", name) for name in ("resnet50", "vgg16", "VGG16_Weights")}
    return [
        Placeholder("scipy.signal", hamming=None),  # TorchMetrics asks whether it is there
        Placeholder("torchvision", transforms=Placeholder("torchvision.transforms")),
        Placeholder("torchvision.models", **networks),
        Placeholder("torch._dynamo", OptimizedModule=OptimizedModule, disable=_disable),
    ]


@contextmanager
def postponed() -> Iterator[None]:
    """Let placeholders stand for those of the modules that have not been imported."""
    import_module("torch")  # first, because it may import what it likes
    for placeholder in _placeholders():
        sys.modules.setdefault(placeholder.__name__, placeholder)
    try:
        yield
    finally:
        _remove(lambda name: isinstance(sys.modules[name], Placeholder))


def import_lightning() -> None:
    """Import Lightning without what can wait, unless any of it has been imported."""
    if not LIGHTNING.isdisjoint(sys.modules):
        return
    try:
        with postponed():
            import_module("pytorch_lightning")
    except (Unforeseen, Exception):  # whatever it is, it must not come from here: all over again
        _remove(lambda name: name.split(".")[0] in LIGHTNING)
        import_module("pytorch_lightning")


def _remove(wanted: Callable[[str], bool]) -> None:
    for name in filter(wanted, list(sys.modules)):
        del sys.modules[name]
