"""Which classes a file may name that nobody has typed."""

import importlib.util
import inspect
import pydoc
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import yaml

LIBRARIES = ("deq_lightning", "torch.optim", "pytorch_lightning", "torchvision.transforms")
ONE_LIST = threading.RLock()  # PyTorch has one list of safe classes in a process
ENDINGS = ("csv", "parquet", "npy", "npz", "pt", "txt", "json", "jsonl", "png", "jpg", "jpeg")  # `test.csv` is no class
LONGEST = 2**20  # bytes of a file that a setting may name and whose content would be read as settings


def foreign_names(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield what would run code of others if objects were made from these settings; imports none of it.

    Free are classes of this program, optimizers and schedules of PyTorch, and Lightning's own callbacks (but those
    that take functions), loggers and strategies. A name counts wherever it stands, because a parser turns a string into
    a class, a function or further settings wherever it expects one.

    Args:
        settings: plain data, as read from a config or the hyper-parameters of a checkpoint, and `unfolded`.
        key: of the settings.

    Yields:
        The dotted key and the name.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from foreign_names(value, f"{key}.{name}".lstrip("."))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from foreign_names(value, key)
    elif isinstance(settings, str) and _importable(settings) and not _is_free(settings):
        yield key, settings


def is_bounded(settings: Any, most: int = 100_000) -> bool:
    """Say whether settings have at most so many entries: in YAML a few lines can stand for any number."""
    left, count = [settings], 0
    while left and count <= most:
        one = left.pop()
        count += 1
        left.extend(one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ())
    return count <= most


def unfolded(settings: Any) -> Any:
    """Return settings with those in them that are written as text, or in a file that a text names, in their place."""
    if isinstance(settings, Mapping):
        return {key: unfolded(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [unfolded(value) for value in settings]
    inner = _within(settings) if isinstance(settings, str) else None
    return settings if inner is None else unfolded(inner)


def _importable(name: str) -> bool:
    """Say whether a string is the path of something that could be imported, without importing it."""
    head, *rest = name.strip().split(".")
    if not rest or rest[-1].lower() in ENDINGS or not all(part.isidentifier() for part in (head, *rest)):
        return False
    try:
        return head in sys.modules or importlib.util.find_spec(head) is not None
    except (ImportError, ValueError):
        return True


def _is_free(name: str) -> bool:
    """Say whether a name is that of a class that may be used."""
    library = next((one for one in LIBRARIES if name.startswith(f"{one}.")), None)
    if library is None:
        return False
    try:
        found = pydoc.locate(name)  # imports of that package alone
    except pydoc.ErrorDuringImport:
        return False
    if not inspect.isclass(found) or not f"{found.__module__}.".startswith(f"{library}."):
        return False  # what the package itself imports, such as `os`, can be reached through it
    return library == "deq_lightning" or (issubclass(found, _kinds(library)) and found.__name__ not in TAKE_FUNCTIONS)


TAKE_FUNCTIONS = ("LambdaCallback", "Lambda", "LambdaLR", "MultiplicativeLR")


def _kinds(library: str) -> tuple[type, ...]:
    """Return the bases of the classes of a library that may be used."""
    import torch
    from torch.optim.lr_scheduler import LRScheduler

    if library == "torch.optim":
        return torch.optim.Optimizer, LRScheduler
    if library == "torchvision.transforms":
        return (torch.nn.Module,)
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger
    from pytorch_lightning.strategies import Strategy

    return Callback, Logger, Strategy, LRScheduler


def _within(text: str) -> Any:
    """Return the settings that a string holds, or the file that it names; None if there are none.

    Raises:
        ValueError: if they are too long to be looked through.
    """
    path = Path(text)
    if "\n" not in text and path.is_file():
        if path.stat().st_size > LONGEST and not _begins_settings(path):
            return None
        text = path.open(errors="replace").read(LONGEST + 1)
    try:
        found = None if len(text) > LONGEST else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None
    if len(text) > LONGEST or not is_bounded(found):
        raise ValueError(f"`{text[:40]}...` holds too many settings")
    return found if _has_names(found) else None


def _begins_settings(path: Path) -> bool:
    """Say whether a long file may hold settings: its first words, if not a lone text, would open a list of them."""
    try:
        for event in yaml.parse(path.open(errors="replace").read(2**16)):
            if isinstance(event, yaml.ScalarEvent):
                return False
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                return True
    except yaml.YAMLError:
        return False  # no parser of settings gets further
    return True  # comments only, so far


def _has_names(found: Any) -> bool:
    """Say whether a class is named in it."""
    if isinstance(found, dict):
        return not found.keys().isdisjoint(("class_path", "init_args")) or any(map(_has_names, found.values()))
    return isinstance(found, list) and any(map(_has_names, found))


@contextmanager
def only_plain(*classes: Any) -> Iterator[None]:
    """Let `torch.load` unpickle tensors, plain data and these classes, and none that anybody has declared to be safe.

    What a library declares need not be: PyTorch Geometric (2.8) has a class on that list which, when made, loads
    another file in a way that runs code.

    Args:
        classes: those that may be made.
    """
    import torch

    with ONE_LIST:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*classes])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


PLAIN = {  # module, and what may be made of it; arrays, matrices and graphs have modules of several names
    r"builtins|__builtin__": "object|list|dict|set|frozenset|tuple|slice|range|int|long|float|complex|bool|str|bytes"
    "|bytearray|unicode",
    r"collections": "OrderedDict|defaultdict|Counter|deque",
    r"copyreg|copy_reg": "_reconstructor",  # an object of a class that may be made
    r"_codecs": "encode",
    r"numpy(\.\w+)*": r"_reconstruct|ndarray|dtype|scalar|_frombuffer",
    r"scipy\.sparse(\.\w+)*": r"[a-z]{3}_(matrix|array)",
    r"torch": r"\w+Storage|Size|device|float\d+|u?int\d+|bool",
    r"torch\._utils": r"_rebuild_tensor(_v2)?|_rebuild_parameter",
    r"torch\.storage": r"UntypedStorage|TypedStorage|_load_from_bytes",  # which names its own parts here as well
    r"torch_geometric\.data(\.\w+)*": r"(Hetero)?Data|\w+Storage|DataEdgeAttr|DataTensorAttr",
}
_watches: list[object] = []  # as many as there are blocks in which pickles are checked


@contextmanager
def plain_pickles() -> Iterator[None]:
    """Let nothing be unpickled but arrays, tensors, graphs and plain data, whoever reads it, in any thread.

    Python tells which name a pickle looks up before it does (the event `pickle.find_class`), so that this holds for
    readers of other libraries as well. Such a listener stays for the life of the process; outside of this it is idle.

    Raises:
        UnpicklingError: in the block, where a pickle names something else.
    """
    if not _listening.is_set():
        sys.addaudithook(_check_pickle)
        _listening.set()
    mark = object()
    _watches.append(mark)
    try:
        yield
    finally:
        _watches.remove(mark)


_listening = threading.Event()


def _check_pickle(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "pickle.find_class" or not _watches:
        return
    module, name = arguments
    if not any(re.fullmatch(one, module) and re.fullmatch(names, name) for one, names in PLAIN.items()):
        raise UnpicklingError(f"names `{module}.{name}`, which is no data, and was not run")
