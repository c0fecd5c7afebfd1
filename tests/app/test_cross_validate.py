"""Cross-validation: a run for every fold, what they come to, and going on after an interruption."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_data import make_tu
from support.marks import slow
from support.runs import QUIET

from deq_lightning import GraphClassification
from deq_lightning.app.cross_validate import cross_validate
from deq_lightning.cli import main

COMMAND = [
    *("--config", "proteins_upg", *QUIET, "--data.folds", "2", "--data.root", ".", "--data.batch_size", "9"),
    *("--model.net.width", "4", "--trainer.max_epochs", "1", "--monitor.estimate_every", "0"),
]


@pytest.fixture
def root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tu(folder, monkeypatch)
    return folder


def results(name: str = "proteins_upg_folds") -> dict[str, Any]:
    return json.loads((Path("checkpoints") / name / "cross_validation.json").read_text())


def interrupt(monkeypatch: pytest.MonkeyPatch, fold: int, step: int) -> None:
    """Let somebody press Ctrl-C in a fold, once, before that step."""
    pressed = []

    def on_train_batch_start(task: GraphClassification, batch: Any, batch_idx: int) -> None:
        del batch, batch_idx
        if task.trainer.datamodule.fold == fold and task.global_step == step and not pressed:
            pressed.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(GraphClassification, "on_train_batch_start", on_train_batch_start)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    for fold in found["folds"].values():
        fold.pop("seconds")
    return found


@pytest.mark.slow
def test_every_fold_is_a_run_and_an_interruption_changes_nothing(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch of the second fold; the run's name has a folder, and the last checkpoint any name."""
    command = [*COMMAND, "--trainer.max_epochs", "2", "--last_checkpoint.filename", "newest"]
    main(["cross_validate", *command, "--name", "the/whole"])
    out = capsys.readouterr().out
    whole = results("the/whole")
    assert list(whole["folds"]) == ["0", "1"]
    for figure in ("test_acc", "test_loss"):
        tests = [fold["test"][figure] for fold in whole["folds"].values()]
        mean = sum(tests) / 2
        std = math.sqrt(sum((value - mean) ** 2 for value in tests) / 2)
        assert whole[figure] == {"mean": pytest.approx(mean), "std": pytest.approx(std)}
        assert f"{figure} {mean:.4g} ± {std:.4g} over 2 folds" in out
    assert "selected by a validation part of the other folds" in out and "not comparable" not in out
    for fold in range(2):
        assert f"fold: {fold}\n" in Path(f"checkpoints/the/whole/fold-{fold}/config.yaml").read_text()

    command += ["--name", "the/parts"]
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        interrupt(patch, fold=1, step=3)
        main(["cross_validate", *command])
    assert list(results("the/parts")["folds"]) == ["0"] and "test_acc" in results("the/parts")
    calls = []
    cross_validate(command, lambda arguments, **options: calls.append(arguments) or main(arguments, **options))
    assert len(calls) == 2  # the arguments are built once; one fold is left
    assert calls[1][-2:] == ["--ckpt_path", "checkpoints/the/parts/fold-1/newest.ckpt"]
    assert without_times(results("the/parts")) == without_times(whole)
    parts, expected = (
        torch.load(f"checkpoints/the/{run}/fold-1/newest.ckpt", weights_only=True) for run in ("parts", "whole")
    )
    assert parts["global_step"] == expected["global_step"] == 4
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, parts["state_dict"][name])


@pytest.mark.slow
def test_selecting_on_the_test_fold_is_labelled(root: Path, capsys: pytest.CaptureFixture) -> None:
    main(["cross_validate", *COMMAND, "--select_on_test", "--data.double_test_edges", "true"])
    out = capsys.readouterr().out
    found = results("proteins_upg_folds_selected_on_test")
    protocol = "not comparable: the model is selected on the test graphs; edges of the test graphs count twice"
    assert found["protocol"] == protocol and protocol in out
    for fold in found["folds"].values():
        assert fold["val"] == fold["test"]["test_acc"]  # they are the same graphs


@pytest.mark.slow
def test_other_settings_do_not_continue(root: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither typed ones nor those of a config that has changed since; in another order they are the same."""
    mine = Path("mine.yaml")
    mine.write_text("gradient:\n  class_path: UPG\n  init_args:\n    damping: 0.5\n")
    command = ["cross_validate", *COMMAND, "--config", "mine.yaml", "--name", "mine"]
    main(command)
    main(
        [
            "cross_validate",
            "--name",
            "mine",
            *reversed_options(COMMAND),
            "--config",
            "mine.yaml",
        ]
    )
    for change, message in {
        ("--gradient.damping", "1.0"): "there `gradient.init_args.damping` is 0.5, here 1.0",
        ("--select_on_test",): "there `protocol` is each fold's epoch is selected by a validation part",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main([*command, *change])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert f"`checkpoints/mine` holds the folds of other settings: {message}" in error
        assert "Type `--name NAME`" in error
    mine.write_text(mine.read_text().replace("0.5", "0.75"))
    with pytest.raises(SystemExit):
        main(command)
    assert "is 0.5, here 0.75" in capsys.readouterr().err


def reversed_options(command: list[str]) -> list[str]:
    """Return the same options in another order, `--config` still first."""
    pairs = [command[i : i + 2] for i in range(0, len(command), 2)]
    return [*pairs[0], *(word for pair in reversed(pairs[1:]) for word in pair)]


def test_what_is_mended_is_not_held_against_it_and_checkpoints_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an interrupted fold's last checkpoint has another name, the fold begins in a folder of its own."""
    command = ["cross_validate", *COMMAND]
    with pytest.raises(SystemExit):
        main(command)  # there are no data yet
    make_tu(folder / "data", monkeypatch)
    kept = Path("checkpoints/proteins_upg_folds/fold-0/mine.ckpt")
    kept.parent.mkdir(parents=True)
    kept.touch()
    main([*command, "--data.root", "data"])
    assert set(results()["folds"]) == {"0", "1"}
    assert kept.exists() and Path("checkpoints/proteins_upg_folds/fold-0-2/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        slow(["--trainer.enable_checkpointing", "false"], "with `--trainer.enable_checkpointing false` there is none"),
        (["--trainer.fast_dev_run", "true"], "with `--trainer.fast_dev_run true` there is none"),
        slow(["--trainer.fast_dev_run", "2"], "with `--trainer.fast_dev_run 2` there is none"),
        (["--best_checkpoint.monitor", "train_loss"], "must be a figure of the validation, such as val_acc, got train"),
        slow(["--trainer.check_val_every_n_epoch", "9"], "a fold ended without a validation"),
    ],
)
def test_a_fold_needs_its_best_checkpoint(
    root: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["cross_validate", *COMMAND, *arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and message in error and "Traceback" not in error


def test_data_without_folds_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in {
        ("--config", "karate_upg"): "`cross_validate` needs data that comes in folds, `TUGraphs`, got `KarateClub`.",
        ("--config", "proteins_upq"): "there is no config `proteins_upq`. Did you mean proteins_upg",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main(["cross_validate", *arguments])
        assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_its_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["cross_validate", "--help"])
    assert "--select_on_test" in capsys.readouterr().out
