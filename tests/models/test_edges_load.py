"""The task of any checkpoint."""

import io
import pickle
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.runs import SMALL, digits_task, trainer

import deq_lightning
from deq_lightning import (
    JFB,
    MDEQ,
    Anderson,
    Broyden,
    Digits,
    FixedPointIteration,
    ImageClassification,
    Implicit,
    Unrolled,
)

ZOO = Path(__file__).parents[2] / "checkpoints" / "zoo" / "digits_upg" / "best.ckpt"
OLD = Path(__file__).parents[1] / "support" / "saved" / "digits_upg_0_1_0" / "best.ckpt"


@pytest.mark.parametrize("path", [ZOO, OLD, str(OLD)], ids=["zoo", "old", "text"])
def test_edges_load_of_the_command_line(path):
    task = deq_lightning.load(path)
    assert type(task) is ImageClassification and not task.training
    assert isinstance(task.net.solver, Broyden) and task.net.solver.max_steps == 10
    expected = ImageClassification.load_from_checkpoint(path).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(task(x), expected(x))


@pytest.mark.parametrize("gradient", [JFB(), Unrolled(unroll_steps=3), Implicit(adjoint_solver=Anderson(rtol=1e-4))])
def test_edges_load_of_a_trainer(gradient, tmp_path):
    task, path = digits_task(), tmp_path / "plain.ckpt"
    task.net.gradient = gradient
    task.net.solver = FixedPointIteration(max_steps=7)
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(task, Digits())
    run.save_checkpoint(path)
    loaded = deq_lightning.load(path)
    assert type(loaded) is ImageClassification and not loaded.training
    assert repr(loaded.net.solver) == repr(task.net.solver) and repr(loaded.net.gradient) == repr(gradient)
    assert loaded.net.gradient.step == 2
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), task.cpu().eval()(x))


class Mine(ImageClassification):
    """A task of somebody else."""


def saved(task: pl.LightningModule, folder: Path) -> Path:
    run = trainer(folder)
    run.strategy.connect(task)
    run.save_checkpoint(folder / "x.ckpt")
    return folder / "x.ckpt"


def test_edges_load_refuses_classes_of_others(tmp_path):
    path = saved(Mine(MDEQ(**SMALL)), tmp_path)
    name = f"{Mine.__module__}.Mine"
    with pytest.raises(ValueError, match=re.escape(f"`{path}` names {name} as `class_path`, which is not of this")):
        deq_lightning.load(path)
    assert type(deq_lightning.load(path, trust_config=True)) is Mine


def test_edges_load_of_a_network_that_no_plain_data_describes(tmp_path):
    class Local(MDEQ):
        pass

    path = saved(ImageClassification(Local(**SMALL)), tmp_path)
    with pytest.raises(ValueError, match=r"does not say how its network is made. Pass it: `deq_lightning.load\("):
        deq_lightning.load(path)
    assert type(deq_lightning.load(path, net=Local(**SMALL)).net) is Local


def test_edges_load_of_something_else(tmp_path):
    torch.save([1], tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt` is not a checkpoint of a task: it has no `state_dict`.$"):
        deq_lightning.load(tmp_path / "x.ckpt")


def call() -> bytes:
    """Return a file of PyTorch that would call a function."""
    file = io.BytesIO()
    torch.save({"state_dict": print}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 cut short", "is damaged or not a checkpoint. Use another one of that run."),
        (b"not a checkpoint", "is not a checkpoint. Type the path of a .ckpt file written by `fit`."),
        (pickle.dumps(print), "is not a checkpoint. Type the path of a .ckpt file written by `fit`."),
        (call(), "holds more than tensors and plain data (a pickled object or call), and was not loaded"),
    ],
    ids=["cut short", "text", "pickle", "call"],
)
def test_edges_load_of_what_is_none_is_one_line(content, message, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{path}` {message}')}"):
        deq_lightning.load(path)
    with pytest.raises(FileNotFoundError):
        deq_lightning.load(tmp_path / "none.ckpt")
