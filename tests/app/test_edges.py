"""The command line as strangers use it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.runs import TINY

from deq_lightning.cli import main

ONE = ["fit", *TINY, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--test_after_fit", "false"]
ONE += ["--trainer.limit_val_batches", "2"]
RUN = Path("checkpoints/digits_upg")


def error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run what is refused, and return the line that says why."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network of the user's own, in the current folder, with an argument that has no default."""
    (folder / "edges_of_mine.py").write_text(
        "from deq_lightning import MDEQ\n\n\nclass Net(MDEQ):\n"
        "    def __init__(self, width: int, in_channels: int = 1):\n"
        "        super().__init__(in_channels, channels=(4,), groups=2, head_channels=(2,))\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield "edges_of_mine.Net"
    sys.modules.pop("edges_of_mine", None)


def test_edges_of_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error([*ONE, "--model.optimizer.lr", "nan"], capsys)
    assert line == "error: `--model.optimizer.lr`: must be a number (float), got nan."


def test_edges_of_a_required_argument(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error(["fit", "--config", "digits_upg", "--model.net", mine], capsys)
    assert line == "error: missing: `--model.net.width`, which has no default. Type it."


@pytest.mark.slow
def test_edges_of_a_logger_without_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*ONE, "--trainer.logger", "CSVLogger"])
    before = (RUN / "version_0" / "metrics.csv").read_text()
    main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), "--trainer.max_epochs", "2", "--test_after_fit", "false"])
    assert (RUN / "version_0" / "metrics.csv").read_text() == before
    assert (RUN / "version_1" / "metrics.csv").is_file()


@pytest.mark.slow
def test_edges_of_stopping_early(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor"]
    with pytest.raises(SystemExit):
        main([*ONE, *stopping, "val_ac"])
    assert "got val_ac. Did you mean val_acc" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*ONE, *stopping, "accuracy"])
    assert "Early stopping conditioned on metric `accuracy`" in capsys.readouterr().err.splitlines()[-1]
    assert "LearningRateFinder" in error([*ONE, "--trainer.callbacks", "LearningRateFinder"], capsys)


@pytest.mark.slow
def test_edges_of_names_of_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run of `digits_upg`" in error(["test", "--config", "digits_upg", "--ckpt_path", "best"], capsys)
    for _ in range(2):
        main(ONE)
    older, newer = RUN / "best.ckpt", Path("checkpoints/digits_upg-2/best.ckpt")
    os.utime(older, (1, 1))
    capsys.readouterr()
    main(["validate", "--ckpt_path", "best"])
    assert f"--ckpt_path best: {newer}" in capsys.readouterr().out
    os.utime(newer, (0, 0))
    main(["validate", "--ckpt_path=best"])
    assert f"--ckpt_path best: {older}" in capsys.readouterr().out


@pytest.mark.slow
def test_edges_of_old_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*ONE, "--run", "old"])
    config = Path("checkpoints/old/config.yaml")
    config.write_text(config.read_text().replace("\nname: null", "\nrun: again"))
    main(["fit", "--config", str(config)])
    assert yaml.safe_load(Path("checkpoints/again/config.yaml").read_text())["name"] is None


@pytest.mark.slow
def test_edges_of_a_saved_config_in_a_notebook(folder: Path) -> None:
    main(ONE)
    cli = main(["--config", str(RUN / "config.yaml")], run=False)
    saved = torch.load(RUN / "last.ckpt", weights_only=True)["state_dict"]
    assert cli.model.state_dict().keys() == saved.keys()


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net."])
def test_edges_of_weights_from_elsewhere(prefix: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = main(ONE[1:], run=False).model.net
    torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, "bare.pt")
    main([*ONE, "--weights", "bare.pt", "--model.optimizer.lr", "0"])
    count = len(net.state_dict())
    assert f"weights: {count} of {count} tensors from bare.pt" in capsys.readouterr().out


@pytest.mark.slow
def test_edges_of_the_console_script(mine: str) -> None:
    code = "import sys; sys.path.remove(''); from deq_lightning.app.front import script; sys.exit(script())"
    fit = ["fit", "--model", "ImageClassification", "--data", "Digits", "--model.net", mine, "--model.net.width", "3"]
    fit += ["--trainer.fast_dev_run", "true"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *fit], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
