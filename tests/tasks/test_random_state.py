"""A resumed run draws what the uninterrupted one would have: every generator, in every process."""

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support.launch import in_two_processes
from support.runs import assert_equal, digits_task, trainer

from deq_lightning import UPG, Digits
from deq_lightning.configured import RunError


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes recorded."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes("support.resumed_processes", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_durable_two_processes_with_dropout_resume_bit_for_bit(both: list[dict[str, Any]]) -> None:
    for one in both:
        assert_equal(one["whole"]["weights"], one["parts"]["weights"])
        assert_equal(one["whole"]["draws"], one["parts"]["draws"])
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "rng_state"):
            assert_equal(one["whole"]["saved"][part], one["parts"]["saved"][part])
    assert_equal(both[0]["whole"]["weights"], both[1]["whole"]["weights"])  # the average included
    assert len(both[0]["whole"]["saved"]["rng_state"]) == 2
    streams = [one["parts"]["draws"] for one in both]
    assert not torch.equal(streams[0][0], streams[1][0]) and streams[0][1:] != streams[1][1:]


@pytest.mark.slow
def test_durable_all_processes_stop_where_one_is_not_finite(both: list[dict[str, Any]]) -> None:
    seen = "stopped at step 2: the weights or the optimizer's state {} are not finite. "
    assert both[0]["error"].startswith(seen.format("of another process"))
    assert both[1]["error"].startswith(seen.format("(extra)"))
    folders = {one["error"].rsplit(" ", 1)[-1] for one in both}
    assert folders == {"of-0/healthy.ckpt"}  # the first process's


# --- one process


def saved(folder: Path) -> Path:
    """Return the checkpoint of a short run, and leave the generators where they happen to be."""
    last = ModelCheckpoint(folder, "last")
    trainer(folder, UPG(), last, max_steps=2).fit(digits_task(), datamodule=Digits(batch_size=16))
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a checkpoint, to be copied."""
    return saved(tmp_path_factory.mktemp("begun"))


def resume(path: Path, steps: int = 2) -> None:
    trainer(path.parent, UPG(), max_steps=steps, limit_val_batches=0).fit(
        digits_task(), datamodule=Digits(batch_size=16), ckpt_path=path
    )


def changed(path: Path, rng_state: Any) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "rng_state": rng_state}, path)
    return path


def test_every_generator_is_restored(folder: Path) -> None:
    random.gauss()
    np.random.randn()  # each keeps a second draw for later
    path = saved(folder)
    (state,) = torch.load(path, weights_only=True)["rng_state"]
    assert state.keys() == {"cpu", "python", "numpy"}
    python, numpy = random.Random(), np.random.RandomState()
    python.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.set_state((name, keys.numpy(), *rest))
    expected = [python.random(), float(numpy.rand()), python.gauss(), float(numpy.randn())]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    resume(path, steps=3)  # dropout draws from PyTorch's generator alone
    assert [random.random(), float(np.random.rand()), random.gauss(), float(np.random.randn())] == expected


def test_checkpoints_of_one_state_alone_go_on_loading(folder: Path) -> None:
    path = saved(folder)
    state = torch.Generator().manual_seed(7).get_state()
    resume(changed(path, {"cpu": state}), steps=3)
    whole = torch.get_rng_state()
    torch.manual_seed(123)
    resume(path, steps=3)
    assert torch.equal(whole, torch.get_rng_state())


@pytest.mark.parametrize("count", [2, 3])
def test_another_number_of_processes_is_said_and_draws_afresh(count: int, folder: Path) -> None:
    path = saved(folder)
    (state,) = torch.load(path, weights_only=True)["rng_state"]
    changed(path, [state] * count)
    random.seed(3)
    fresh = random.getstate()
    with pytest.warns(UserWarning, match=rf"has the random state of {count} process\(es\), and this run has 1: its"):
        resume(path, steps=3)
    assert random.getstate() == fresh


NUMPY = ("MT19937", torch.zeros(624, dtype=torch.int64), 624, 0, 0.0)


@pytest.mark.parametrize(
    "state",
    [
        "text",
        5,
        torch.zeros(3),
        [None],
        {"cpu": "text"},
        {"cpu": torch.zeros(5056)},
        {"cpu": torch.zeros(5056, dtype=torch.uint8)},
        {"cpu": torch.zeros(7, dtype=torch.uint8)},
        {"python": None},
        {"python": (3, [0] * 624 + [2**70], None)},
        {"python": (3, [1] * 10, None)},
        {"python": (3, [1] * 625, "text")},
        {"numpy": NUMPY[:2]},
        {"numpy": (NUMPY[0], NUMPY[1], 10**6, *NUMPY[3:])},
        {"numpy": (NUMPY[0], NUMPY[1][:5], 3, *NUMPY[3:])},
        {"numpy": (NUMPY[0], NUMPY[1] - 1, *NUMPY[2:])},
        [{}, {"cpu": torch.zeros(3)}],  # of another process
    ],
)
def test_what_is_no_random_state_is_refused_in_a_sentence(state: Any, begun: Path, folder: Path) -> None:
    path = changed(Path(shutil.copy(begun, folder)), state)
    before = random.getstate()
    with pytest.raises(RunError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resume(path, steps=3)
    assert str(error.value) == (
        "`rng_state` of the checkpoint must be the random states of its processes, got something else. "
        "Use another checkpoint of the run."
    )
    assert random.getstate() == before
