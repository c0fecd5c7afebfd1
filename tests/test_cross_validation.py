"""Cross-validation: a run for every fold, what they come to, and going on after an interruption."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import QUIET
from fake_data import make_tu

from deq_lightning import cross_validation
from deq_lightning.cli import main
from deq_lightning.cross_validation import cross_validate

COMMAND = [
    *("--config", "proteins_upg", *QUIET, "--data.folds", "2", "--data.root", ".", "--data.batch_size", "9"),
    *("--model.net.width", "4", "--trainer.max_epochs", "2", "--monitor.estimate_every", "0"),
]


@pytest.fixture
def root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tu(folder, monkeypatch)
    return folder


def results(name: str = "proteins_upg_folds") -> dict[str, Any]:
    return json.loads((Path("checkpoints") / name / "cross_validation.json").read_text())


def interrupted_main(at: int) -> Any:
    """Return the command line that is interrupted in the run with that number, before its end."""
    runs = []

    def run(arguments: list[str], **options: bool) -> Any:
        if options.get("run", True):
            runs.append(arguments)
            if len(runs) == at:
                main([*arguments, "--trainer.max_epochs", "1", "--test_after_fit", "false"])
                raise KeyboardInterrupt
        return main(arguments, **options)

    return run


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    for fold in found["folds"].values():
        fold.pop("seconds")
    return found


def test_every_fold_is_a_run_and_an_interruption_changes_nothing(root: Path, capsys: pytest.CaptureFixture) -> None:
    main(["cross_validate", *COMMAND])
    out = capsys.readouterr().out
    whole = results()
    assert list(whole["folds"]) == ["0", "1"]
    tests = [fold["test"] for fold in whole["folds"].values()]
    mean = sum(tests) / 2
    std = math.sqrt(sum((value - mean) ** 2 for value in tests) / 2)
    assert (whole["mean"], whole["std"]) == (pytest.approx(mean), pytest.approx(std))
    assert f"test_acc {mean:.4f} ± {std:.4f} over 2 folds" in out
    assert "selected by a validation part of the other folds" in out and "not comparable" not in out
    for fold in range(2):
        assert f"fold: {fold}\n" in Path(f"checkpoints/proteins_upg_folds/fold-{fold}/config.yaml").read_text()

    command = [*COMMAND, "--run", "parts"]
    with pytest.raises(KeyboardInterrupt):
        cross_validate(command, interrupted_main(at=2))
    assert list(results("parts")["folds"]) == ["0"] and "mean" in results("parts")
    calls = []
    cross_validate(command, lambda arguments, **options: calls.append(arguments) or main(arguments, **options))
    assert len(calls) == 2  # the arguments are built once; one fold is left
    assert calls[1][-2:] == ["--ckpt_path", "checkpoints/parts/fold-1/last.ckpt"]
    assert without_times(results("parts")) == without_times(whole)


def test_selecting_on_the_test_fold_is_labelled(root: Path, capsys: pytest.CaptureFixture) -> None:
    main(["cross_validate", *COMMAND, "--select_on_test", "--data.double_test_edges", "true"])
    out = capsys.readouterr().out
    found = results("proteins_upg_folds_selected_on_test")
    assert "selected by its own test accuracy" in found["protocol"] and found["protocol"] in out
    assert found["protocol"].endswith("; edges of the test graphs count twice")
    assert "not comparable: the model is selected on the test graphs" in out
    for fold in found["folds"].values():
        assert fold["val"] == fold["test"]  # they are the same graphs


def test_another_command_does_not_continue(root: Path, capsys: pytest.CaptureFixture) -> None:
    cross_validation._begin(Path("checkpoints/mine"), ["--config", "cox2_upg"], cross_validation.PROTOCOLS[False])
    with pytest.raises(SystemExit) as exit_:
        main(["cross_validate", *COMMAND, "--run", "mine"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "`checkpoints/mine` holds the folds of another command (`--config cox2_upg`). Type `--run NAME`" in error


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
