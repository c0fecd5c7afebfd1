"""Searches: Optuna's trials are runs, each done once by whatever processes, and the best command is printed."""

import json
import math
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.marks import slow
from support.runs import TINY

from deq_lightning.app.extra import CALLBACKS
from deq_lightning.app.messages import UsageError
from deq_lightning.app.search.space import dimensions
from deq_lightning.cli import main

optuna = pytest.importorskip("optuna")

from deq_lightning.app.search.command import Pruning, search  # noqa: E402

FOLDER = Path("checkpoints/digits_upg_searched")
SPACE = ["--space", "gradient.k=1..8", "--space", "model.optimizer.lr=log:1e-4..1e-1"]


@pytest.mark.parametrize(
    ("text", "suggested", "typed"),
    [
        ("k=1..8", optuna.distributions.IntDistribution(1, 8), "3"),
        ("k=log:1..8", optuna.distributions.IntDistribution(1, 8, log=True), "3"),
        ("--lr=log:1e-4..1e-1", optuna.distributions.FloatDistribution(1e-4, 0.1, log=True), "0.003"),
        ("d=0.5..1", optuna.distributions.FloatDistribution(0.5, 1.0), "0.75"),
        ("g=UPG,NPG", optuna.distributions.CategoricalDistribution(("UPG", "NPG")), "NPG"),
    ],
)
def test_a_range_is_a_distribution(text: str, suggested: Any, typed: str) -> None:
    (one,) = dimensions([text])
    study = optuna.create_study()
    study.enqueue_trial({one.key: type(suggested.low)(typed) if hasattr(suggested, "low") else typed})
    trial = study.ask()
    assert one.choose(trial) == typed
    assert trial.distributions == {one.key: suggested}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k", "must be a flag with its range"),
        ("k=", "must be a flag with its range"),
        ("k=8..1", "must end above its begin"),
        ("k=log:0..1", "must begin above 0"),
        ("k=log:a", "must be two numbers with"),
        ("k=1..x", "must be two numbers with"),
        ("k=a,a", "must have different values"),
    ],
)
def test_what_is_no_range(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dimensions([text])


def valley(typed: dict[str, str]) -> float:
    """Return a figure that is best at k = 5 and a rate of 0.01."""
    return 1 - abs(int(typed["--gradient.k"]) - 5) / 10 - abs(math.log10(float(typed["--model.optimizer.lr"])) + 2) / 10


class Fits:
    """The command line, with fits that take no time."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done: list[dict[str, str]] = []
        self.stop_at = stop_at

    def __call__(self, args: list[str], run: bool = True) -> Any:
        if args[0] != "fit":
            return main(args, run=run)
        keys = ("--gradient.k", "--model.optimizer.lr", "--name")
        typed = {key: args[args.index(key) + 1] for key in keys}
        if len(self.done) == self.stop_at:
            raise SystemExit(130)
        if typed["--gradient.k"] == "1":
            print("error: it diverged", file=sys.stderr)
            raise SystemExit(1)
        self.done.append(typed)
        folder = Path("checkpoints", typed["--name"])
        folder.mkdir(parents=True)
        found = {"monitor": "val_acc", "best": valley(typed), "seconds_per_step": float(typed["--gradient.k"])}
        (folder / "results.json").write_text(json.dumps(found))
        return None


def study() -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(FOLDER / "study.log"))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def test_a_search_finds_the_best_and_goes_on_where_it_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, first, rest = [*TINY, *SPACE, "--trials", "25"], Fits(stop_at=4), Fits()
    with pytest.raises(SystemExit):
        search(args, first)
    search(args, rest)
    trials = study().get_trials()
    done = [trial for trial in trials if trial.values]
    assert len(trials) == 25 and len(first.done) == 4 and len(done) == len(first.done) + len(rest.done)
    for trial in done:
        typed = {"--gradient.k": trial.params["gradient.k"], "--model.optimizer.lr": trial.params["model.optimizer.lr"]}
        assert trial.value == valley(typed)
    assert all(trial.user_attrs["error"] == "it diverged\n" for trial in trials if not trial.values)
    assert study().best_value > 0.9
    (best,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best, ")]
    typed = shlex.split(best.partition(": ")[2])
    assert typed[:4] == ["python", "-m", "deq_lightning", "fit"]
    assert typed[typed.index("--gradient.k") + 1] == str(study().best_params["gradient.k"])
    again = Fits()
    search(args, again)
    assert again.done == []


def test_two_figures_have_several_best(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search([*TINY, *SPACE, "--trials", "12", "--minimize", "seconds_per_step"], Fits())
    front = study().best_trials
    assert capsys.readouterr().out.count("best, ") == len(front) > 1
    for one in front:
        assert not any(other.values[0] >= one.values[0] and other.values[1] < one.values[1] for other in front)


def test_what_promises_little_is_stopped() -> None:
    told: list[tuple[float, int]] = []
    trial = SimpleNamespace(report=lambda value, step: told.append((value, step)), should_prune=lambda: len(told) == 2)
    trainer = SimpleNamespace(
        sanity_checking=False, should_stop=False, callback_metrics={"val_acc": torch.tensor(0.5)}, current_epoch=3
    )
    pruning = Pruning(trial, "val_acc")
    pruning.on_validation_end(trainer, None)
    assert told == [(0.5, 3)] and not trainer.should_stop
    pruning.on_validation_end(trainer, None)
    assert trainer.should_stop and pruning.pruned


@pytest.mark.slow
def test_a_search_of_real_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trials", "7", "--prune"]
    main(["search", *TINY, *limits, *SPACE])
    states = [trial.state.name for trial in study().get_trials()]
    assert len(states) == 7 and set(states) <= {"COMPLETE", "PRUNED"}
    best = json.loads((FOLDER / f"trial-{study().best_trial.number}" / "results.json").read_text())
    assert study().best_value == best["best"] and not CALLBACKS
    assert "Pruning" not in (FOLDER / "trial-0" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "error: the following arguments are required: --space. Type `search --help` for its options."),
        (["--space", "gradient.kk=1..2"], "there is no argument `kk`"),
        slow([*SPACE, "--trials", "0"], "`--trials` must be 1 or more, got 0."),
        slow([*SPACE, "--prune", "--minimize", "seconds_per_step"], "Leave one of them out."),
        slow(["--space", "gradient.k=1..2", "--space", "gradient.k=3..4"], "must have each flag once"),
    ],
)
def test_bad_input_is_a_line(folder: Path, typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", *TINY, *typed])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and "Traceback" not in error
    assert not FOLDER.exists()
