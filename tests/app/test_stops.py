"""Runs that end before their time: what stays on disk, and how to go on."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_data import make_tu
from support.marks import slow
from support.runs import TINY

from deq_lightning import Digits, ImageClassification
from deq_lightning.app.stops import Footprint
from deq_lightning.cli import main

ROOT = Path(__file__).parents[2]
FIT = ["fit", *TINY, "--test_after_fit", "false", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"]
CONTINUE = "continue: python -m deq_lightning "


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def act_once(monkeypatch: pytest.MonkeyPatch, owner: type, hook: str, act: Any, step: int = 0) -> None:
    """Do something when a hook is called at some step, before what the hook does."""
    own = getattr(owner, hook)

    def before(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.global_step == step:
            act()
        return own(self, *args, **kwargs)

    monkeypatch.setattr(owner, hook, before)


def press() -> None:
    raise KeyboardInterrupt


def stopped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run, and return the exit status and the last line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code, capsys.readouterr().out.strip().splitlines()[-1]


# --- signals ---


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_last_line_continues_the_run(number: signal.Signals, status: int, folder: Path) -> None:
    checkpoint = Path("checkpoints/digits_upg/last.ckpt")
    command = [sys.executable, "-m", "deq_lightning", *FIT, "--trainer.max_epochs", "10000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not checkpoint.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in err
    last = out.strip().splitlines()[-1]
    assert last == f"{CONTINUE}fit --ckpt_path {checkpoint}"
    if number == signal.SIGTERM:
        return
    done = torch.load(checkpoint, weights_only=True)["epoch"] + 1
    cli = main([*shlex.split(last.removeprefix(CONTINUE)), "--trainer.max_epochs", str(done + 1)])
    assert cli.trainer.current_epoch == done + 1


def test_before_the_first_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, ImageClassification, "on_train_batch_start", press, step=1)
    status, last = stopped([*FIT, "--guard.save_every", "500"], capsys)
    assert status == 130
    assert last == "stopped before the first checkpoint: there is nothing to continue yet"


@pytest.mark.slow
def test_in_the_test_that_ends_a_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, ImageClassification, "on_test_start", press, step=4)
    _, last = stopped([*FIT, "--test_after_fit", "true"], capsys)
    assert last == f"{CONTINUE}fit --ckpt_path checkpoints/digits_upg/last.ckpt"


@pytest.mark.slow
def test_the_last_line_is_beside_no_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    act_once(monkeypatch, ImageClassification, "on_validation_batch_start", press, step=2)
    with pytest.raises(SystemExit):
        main([*FIT, "--trainer.enable_progress_bar", "true"])
    assert capsys.readouterr().out.endswith("\nstopped before the first checkpoint: there is nothing to continue yet\n")


def test_a_healthy_checkpoint_is_continued_where_it_is_the_only_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, ImageClassification, "on_after_backward", press, step=1)
    _, last = stopped([*FIT, "--guard.save_every", "1"], capsys)
    assert last == f"{CONTINUE}fit --ckpt_path checkpoints/digits_upg/healthy.ckpt"


@pytest.mark.slow
def test_a_continued_run_is_typed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(FIT)
    again = ["fit", "--ckpt_path", "checkpoints/digits_upg/last.ckpt", "--trainer.max_epochs", "3"]
    act_once(monkeypatch, ImageClassification, "on_train_batch_start", press, step=5)
    assert stopped(again, capsys) == (130, CONTINUE + " ".join(again))


@pytest.mark.slow
def test_cross_validation_is_typed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deq_lightning import GraphClassification

    make_tu(folder, monkeypatch)
    act_once(monkeypatch, GraphClassification, "on_train_batch_start", press, step=1)
    command = ["cross_validate", "--config", "proteins_upg", "--data.folds", "2", "--data.root", "."]
    command += ["--model.net.width", "4", "--data.batch_size", "4"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="130"):
        main(command)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line for line in lines if "continue" in line] == [lines[-1]] == [CONTINUE + " ".join(command)]


def test_sigterm_while_lightning_does_not_listen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, Digits, "setup", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped(FIT, capsys)[0] == 143
    assert not files(folder)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --- what stays on disk ---

TEXT = ["--config", "pydocs_upg", "--trainer.max_epochs", "1"]
REFUSED = {
    "wrong vocabulary": ([*TEXT, "--model.net.vocab_size", "1000"], "1000"),
    "data of another kind": ([*TEXT, "--data", "Digits"], ""),
    "no files": (["--config", "cifar_upg", "--data.root", "nowhere"], "`CIFAR10` was not found under `nowhere"),
    "learning rate": ([*TINY, "--model.optimizer.lr", "-1"], "Invalid learning rate"),
    "no end for the schedule": ([*TEXT, "--trainer.max_epochs", "-1"], "needs a run whose number of steps is known"),
}


@pytest.mark.parametrize(
    ("case", "fast"), [*((case, []) for case in REFUSED), ("wrong vocabulary", ["--trainer.fast_dev_run", "true"])]
)
def test_a_refused_run_leaves_nothing(
    case: str, fast: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises((SystemExit, Exception)):
        main(["fit", *arguments, *fast])
    assert message in capsys.readouterr().err
    assert not files(folder)


@pytest.mark.parametrize(
    "hook", [slow("setup"), slow("on_fit_start"), "on_train_batch_start", slow("on_after_backward")]
)
def test_an_interruption_before_the_first_step_leaves_nothing(
    hook: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, ImageClassification, hook, press)
    status, last = stopped(FIT, capsys)
    assert status == 130
    assert "nothing to continue" in last
    assert not files(folder)


@pytest.mark.slow
def test_what_was_there_before_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of a continued run, with curves of an earlier process of the same number."""
    main(FIT)
    run = folder / "checkpoints" / "digits_upg"
    assert list(run.glob(f"events.out.tfevents.*.{os.getpid()}.*"))
    before = files(folder)
    act_once(monkeypatch, ImageClassification, "setup", press)
    stopped(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "3"], capsys)
    assert files(folder) == before
    act_once(monkeypatch, ImageClassification, "on_train_start", press, step=4)
    stopped(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "3"], capsys)
    assert files(folder) == before


def test_files_of_another_process_stay(folder: Path) -> None:
    """Two runs that begin at the same moment choose the same folder."""
    ours = Footprint(folder / "runs" / "name")
    (folder / "runs" / "name").mkdir(parents=True)
    for name in ("config.yaml", f"events.out.tfevents.1.host.{os.getpid()}.0", "events.out.tfevents.1.host.1.0"):
        (folder / "runs" / "name" / name).write_text("")
    ours.remove()
    assert {path.name for path in folder.glob("runs/name/*")} == {"config.yaml", "events.out.tfevents.1.host.1.0"}


def test_a_run_that_took_a_step_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act_once(monkeypatch, ImageClassification, "on_train_batch_start", press, step=1)
    stopped(FIT, capsys)
    assert {path.name.split(".")[0] for path in folder.glob("checkpoints/digits_upg/*")} >= {"config", "events"}
