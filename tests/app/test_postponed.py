"""Lightning's import without what can wait: what waits is there when it is used."""

import statistics
import subprocess
import sys
from importlib import import_module

import pytest
import pytorch_lightning

from deq_lightning.app.postponed import Placeholder, Unforeseen, _Later, import_lightning, postponed

START = """
import sys
from deq_lightning.app.postponed import Placeholder, import_lightning
import_lightning()
import pytorch_lightning as pl, torch
assert not any(isinstance(module, Placeholder) for module in sys.modules.values())
"""

USE = """
assert not {"scipy.signal", "torchvision", "torchvision.models", "torch._dynamo"} & sys.modules.keys()

# Lightning knows compiled modules from others, and what it keeps from being compiled runs.
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection
from pytorch_lightning.utilities.compile import _maybe_unwrap_optimized, from_compiled
module = pl.LightningModule()
assert _maybe_unwrap_optimized(module) is module and "torch._dynamo" not in sys.modules
compiled = torch.compile(module, backend="eager")
assert _maybe_unwrap_optimized(compiled) is from_compiled(compiled) is module
results = _ResultCollection(training=True)
results.log("f", "x", torch.tensor(2.0), on_step=True, on_epoch=False)
assert results.metrics(on_step=True)["log"] == {"x": 2.0}

# TorchMetrics reaches what it took of torchvision.
import torchmetrics.functional.image
arniqa = sys.modules["torchmetrics.functional.image.arniqa"]
assert arniqa.transforms.Resize((2, 2))(torch.zeros(3, 4, 4)).shape == (3, 2, 2)
assert arniqa.resnet50(num_classes=3).fc.out_features == 3
dists = sys.modules.get("torchmetrics.functional.image.dists")
assert not hasattr(dists, "VGG16_Weights") or dists.VGG16_Weights.DEFAULT.url.endswith(".pth")

# Everyone else gets the real modules.
import scipy.signal, torchvision, torchvision.models
assert scipy.signal.convolve([1, 2], [1]).tolist() == [1, 2]
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
assert torchvision.__file__ and sys.modules["torchvision.models"] is torchvision.models
"""

# Stands for a release of Lightning that takes something else while it is imported.
OTHER_RELEASE = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pytorch_lightning.trainer":
            import torchvision.ops
sys.meta_path.insert(0, Finder())
"""


def python(code: str) -> None:
    """Run in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


@pytest.mark.slow
def test_what_waits_is_real_when_it_is_used() -> None:
    python(START + USE)


@pytest.mark.slow
def test_what_is_not_foreseen_only_costs_time() -> None:
    python(OTHER_RELEASE + START + "assert pl.Trainer and sys.modules['torchvision'].ops.nms")


def test_an_imported_lightning_is_left_alone() -> None:
    import_lightning()
    assert sys.modules["pytorch_lightning"] is pytorch_lightning


def test_an_imported_module_is_left_alone_and_an_error_ends_the_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    dynamo = import_module("torch._dynamo")
    with pytest.raises(ZeroDivisionError), postponed():
        assert isinstance(sys.modules["torchvision"], Placeholder)
        assert sys.modules["torch._dynamo"] is dynamo
        raise ZeroDivisionError
    assert "torchvision" not in sys.modules


def test_a_placeholder_has_what_it_is_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statistics", Placeholder("statistics", mean=7))
    from statistics import mean

    assert mean == 7
    for unforeseen in ("statistics.sub", "statistics.sub.sub"):
        with pytest.raises(Unforeseen):
            import_module(unforeseen)
    with pytest.raises(Unforeseen):
        from statistics import median  # noqa: F401
    assert not hasattr(sys.modules["statistics"], "__file__")


def test_a_placeholder_that_is_kept_leads_to_the_real_module() -> None:
    kept = Placeholder("statistics", mean=_Later("statistics", "mean"))
    assert kept.median is statistics.median
    assert kept.mean([1, 3]) == 2
    with pytest.raises(AttributeError):
        _ = kept.nothing
