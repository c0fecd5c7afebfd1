"""Nothing is lost, and no figure is silently that of something else."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from support.marks import slow
from support.runs import QUIET, TINY, assert_equal

from deq_lightning import ImageClassification
from deq_lightning.app.messages import UsageError
from deq_lightning.app.runs import Lock, claim_folder
from deq_lightning.app.storage import LocalCheckpoints
from deq_lightning.cli import main

FIT = ["fit", *TINY, "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2", "--data.batch_size", "8"]
ONE = [*FIT, "--trainer.max_epochs", "1"]
RUN = Path("checkpoints/digits_upg")


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run, and return the exit status and the lines on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]


def accuracy_is(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the validations of the epochs reach these accuracies."""
    own = ModelCheckpoint._monitor_candidates

    def candidates(self: ModelCheckpoint, trainer: pl.Trainer) -> dict[str, torch.Tensor]:
        return own(self, trainer) | {"val_acc": torch.tensor(values[trainer.current_epoch])}

    monkeypatch.setattr(ModelCheckpoint, "_monitor_candidates", candidates)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    here, there = Path.cwd(), tmp_path_factory.mktemp("made")
    os.chdir(there)
    try:
        main([*ONE, "--test_after_fit", "false"])
    finally:
        os.chdir(here)
    return there / RUN


@pytest.fixture
def run(made: Path, folder: Path) -> Path:
    """A copy of that folder, where it would be made in the current one."""
    shutil.copytree(made, folder / RUN)
    return RUN


# --- folders ---


def test_durable_folders_are_claimed_once(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_folder(Path("runs"), "name")[0], range(24)))
    assert len(set(claimed)) == 24
    assert all(path.is_dir() for path in claimed)


@pytest.mark.slow
def test_durable_runs_of_the_same_second(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deq_lightning",
        *ONE,
        "--trainer.limit_val_batches",
        "1",
        "--test_after_fit",
        "false",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runs = [subprocess.Popen([*command, "--seed_everything", str(s)], env=environment, **quiet) for s in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    found = sorted(Path("checkpoints").iterdir())
    assert [path.name for path in found] == ["digits_upg", "digits_upg-2"]
    seeds = [yaml.safe_load((path / "config.yaml").read_text())["seed_everything"] for path in found]
    assert sorted(seeds) == [0, 1]
    processes = [{events.name.split(".")[-2] for events in path.glob("events*")} for path in found]
    assert [len(one) for one in processes] == [1, 1] and processes[0] != processes[1]


@pytest.mark.parametrize(
    "refused",
    [
        ["--model.optimizer.lr", "-1"],
        ["--trainer.accumulate_grad_batches", "0"],
        ["--model.net.num_classes", "2"],
        ["--best_checkpoint.monitor", "val_nothing"],
    ],
)
def test_durable_refusals_leave_no_folder(refused: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = ended([*ONE, *refused], capsys)
    assert code
    assert list(folder.iterdir()) == []


def test_durable_against_two_at_one_run(folder: Path) -> None:
    held = Lock(folder)
    with pytest.raises(UsageError, match="another process is at work in"):
        Lock(folder, patience=0)
    held.release()
    Lock(folder, patience=0).release()


def test_durable_where_there_are_no_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    Lock(folder, patience=0).release()


# --- writing ---


@pytest.mark.slow
def test_durable_when_the_disk_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, count = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(count) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    code, lines = ended([*FIT, "--trainer.max_epochs", "4"], capsys)
    assert code == 1
    assert len(lines) == 1
    assert "could not be written: No space left on device" in lines[0]
    assert f"fit --ckpt_path {RUN / 'last.ckpt'}" in lines[0]
    step = torch.load(RUN / "last.ckpt", weights_only=True)["global_step"]
    assert step > 0
    monkeypatch.undo()
    os.chdir(folder)
    assert main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), *QUIET]).trainer.global_step == 8


@pytest.mark.slow
def test_durable_when_the_curves_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(self: TensorBoardLogger, *args: object, **options: object) -> None:
        if self.save_dir and Path(self.save_dir, "last.ckpt").exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), b"events")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", read_only)
    code, lines = ended([*FIT, "--trainer.max_epochs", "9", "--trainer.log_every_n_steps", "1"], capsys)
    assert code == 1
    assert lines == [
        "error: `events` could not be written: Read-only file system. The last whole checkpoint is "
        f"{RUN / 'last.ckpt'}. To go on: python -m deq_lightning fit --ckpt_path {RUN / 'last.ckpt'}"
    ]


@pytest.mark.parametrize("subcommand", ["test", slow("predict"), slow("validate")])
def test_durable_errors_of_the_system_are_a_line(
    subcommand: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = {"test": "on_test_start", "predict": "on_predict_start", "validate": "on_validation_start"}[subcommand]

    def fail(self: ImageClassification) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")

    monkeypatch.setattr(ImageClassification, hook, fail)
    code, lines = ended([subcommand, "--ckpt_path", str(RUN / "best.ckpt"), *QUIET], capsys)
    assert (code, lines) == (1, ["error: `somewhere` could not be written: Permission denied."])


@pytest.mark.slow
def test_durable_when_the_folder_of_a_run_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ImageClassification.on_train_epoch_start

    def remove(self: ImageClassification) -> None:
        if self.trainer.current_epoch == 1:
            shutil.rmtree(RUN)
        begin(self)

    monkeypatch.setattr(ImageClassification, "on_train_epoch_start", remove)
    code, lines = ended([*FIT, "--trainer.max_epochs", "3", "--trainer.logger", "false"], capsys)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].endswith("No such file or directory. There is no checkpoint of this run.")


def test_durable_predictions_stay_until_new_ones_are_complete(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["predict", "--ckpt_path", str(RUN / "best.ckpt"), *QUIET, "--data.batch_size", "32"]
    main(predict)
    complete = (RUN / "predictions.csv").read_text()
    step = ImageClassification.predict_step

    def stop(self: ImageClassification, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassification, "predict_step", stop)
    with pytest.raises(SystemExit, match="130"):
        main(predict)
    assert (RUN / "predictions.csv").read_text() == complete
    assert not list(RUN.glob(".*"))


# --- the best checkpoint ---


@pytest.mark.slow
@pytest.mark.parametrize("keep", [3, -1])
def test_durable_best_of_several(keep: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy_is(monkeypatch, 0.9, 0.5, 0.7, 0.6)
    cli = main([*FIT, "--trainer.max_epochs", "4", "--best_checkpoint.save_top_k", str(keep)])
    found = sorted(path.name for path in RUN.glob("best*"))
    steps = [(0, 2, 0.9), (1, 4, 0.5), (2, 6, 0.7), (3, 8, 0.6)]
    names = [f"best-epoch={epoch}-step={step}-val_acc={value}.ckpt" for epoch, step, value in steps]
    assert found == sorted(names if keep == -1 else [names[0], *names[2:]])
    best = cli.config_init.fit.best_checkpoint
    assert Path(best.best_model_path).name == names[0]
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 0


@pytest.mark.slow
def test_durable_best_after_a_run_was_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy_is(monkeypatch, 0.9, 0.5, 0.95)
    main(ONE)
    Path("elsewhere").mkdir()
    shutil.move("checkpoints/digits_upg", "elsewhere/run")
    before = Path("elsewhere/run/best.ckpt").read_bytes()
    cli = main(["fit", "--ckpt_path", "elsewhere/run/last.ckpt", "--trainer.max_epochs", "2", *QUIET])
    best = cli.config_init.fit.best_checkpoint
    assert best.best_model_score == pytest.approx(0.9)
    assert Path("elsewhere/run/best.ckpt").read_bytes() == before
    main(["fit", "--ckpt_path", "elsewhere/run/last.ckpt", "--trainer.max_epochs", "3", *QUIET])
    assert torch.load("elsewhere/run/best.ckpt", weights_only=True)["epoch"] == 2  # higher is still better


@pytest.mark.slow
def test_durable_mode_of_a_monitor_that_was_typed(folder: Path) -> None:
    main([*ONE, "--best_checkpoint.monitor", "val_acc"])
    cli = main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), *QUIET])
    assert (cli.config_init.fit.best_checkpoint.mode, cli.model.mode_of("val_acc")) == ("max", "max")


@pytest.mark.slow
def test_durable_best_in_a_new_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy_is(monkeypatch, 0.9, 0.5)
    main(ONE)
    main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), "--trainer.max_epochs", "2", "--name", "new", *QUIET])
    assert Path("checkpoints/new/best.ckpt").read_bytes() == (RUN / "best.ckpt").read_bytes()
    assert torch.load(RUN / "last.ckpt", weights_only=True)["epoch"] == 0  # the old run stays as it was


def test_durable_names_in_checkpoints_are_names_alone(run: Path) -> None:
    (state,) = (
        one
        for key, one in torch.load(RUN / "last.ckpt", weights_only=True)["callbacks"].items()
        if "ModelCheckpoint" in key and "val_acc" in key
    )
    assert state["best_model_path"] == "best.ckpt"
    assert list(state["best_k_models"]) == ["best.ckpt"]
    assert state["dirpath"] == ""
    assert str(Path.cwd()) not in repr(torch.load(RUN / "best.ckpt", weights_only=True))


def test_durable_states_without_their_files_are_forgotten(folder: Path) -> None:
    path = folder / "last.ckpt"
    score = torch.tensor(0.5)
    sound = {"best_model_path": "a.ckpt", "best_model_score": score, "best_k_models": {"a.ckpt": score}}
    sound |= {"kth_best_model_path": "a.ckpt", "dirpath": "", "current_score": score, "kth_value": score}
    for changed in ({"best_k_models": {"a.ckpt": "high"}}, {"kth_best_model_path": "b.ckpt"}, {"best_model_path": "c"}):
        for name in ("a.ckpt", "b.ckpt"):
            (folder / name).touch()
        torch.save({"state_dict": {}, "callbacks": {"one": sound | changed, "two": sound, "three": 3}}, path)
        states = LocalCheckpoints().load_checkpoint(path)["callbacks"]
        assert states["one"]["best_model_path"] == "" and states["one"]["best_model_score"] is None
        assert states["one"]["best_k_models"] == {}
        assert states["two"]["best_model_path"] == str(folder / "a.ckpt")
        assert states["three"] == 3


def test_durable_checkpoints_have_a_file_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended([*ONE, "--best_checkpoint.filename", "last"], capsys)
    assert (code, len(lines)) == (2, 1)


# --- what ran ---


@pytest.mark.slow
def test_durable_seeds_are_those_of_the_data_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, seed, line in (
        (["--seed_everything", "3"], 3, ", seed 3\n"),
        (["--seed_everything", "3", "--data.seed", "5"], 5, ", seed 3, data seed 5\n"),
    ):
        capsys.readouterr()
        cli = main([*ONE, *typed, "--name", f"seed-{seed}"])
        assert cli.datamodule.seed == seed
        assert line in capsys.readouterr().out
        saved = yaml.safe_load(Path(f"checkpoints/seed-{seed}/config.yaml").read_text())
        assert saved["data"]["init_args"]["seed"] == seed
    assert main(["test", "--ckpt_path", "checkpoints/seed-3/best.ckpt", "--seed_everything", "9"]).datamodule.seed == 3


@pytest.mark.parametrize("seed", ["-5", "99999999999999"])
def test_durable_seeds_out_of_range(seed: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended([*ONE, "--seed_everything", seed], capsys)
    assert code == 2
    assert lines == [f"error: `--seed_everything` must be a whole number from 0 to 4294967295, got {seed}."]


@pytest.mark.parametrize(
    ("flag", "code"),
    [
        (["--trainer.limit_train_batches", "0"], 2),
        (["--trainer.max_epochs", "0"], 2),
        (["--trainer.max_steps", "0"], 2),
        (["--trainer.gradient_clip_val", "-1"], 2),
        (["--trainer.max_time", "00:00:00:00"], 1),
    ],
)
def test_durable_runs_that_train_nothing_say_so(
    flag: list[str], code: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = ended([*ONE, *flag], capsys)
    assert (status, len(lines)) == (code, 1)
    assert not Path("checkpoints").exists()


def test_durable_runs_that_are_over_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("checkpoints/digits_upg").rename("renamed")
    capsys.readouterr()
    main(["fit", "--ckpt_path", "renamed/last.ckpt", *QUIET])
    out = capsys.readouterr().out
    assert "nothing was left to train after epoch 1: type more `--trainer.max_epochs`" in out
    assert "best checkpoint: renamed/best.ckpt (val_acc" in out


@pytest.mark.parametrize("subcommand", ["test", slow("validate"), slow("predict")])
def test_durable_weights_are_trained_ones(subcommand: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended([subcommand, *TINY], capsys)
    assert (code, len(lines)) == (2, 1)
    assert f"`{subcommand}` needs trained weights. Type `--ckpt_path PATH`" in lines[0]
    main([subcommand, *TINY, "--ckpt_path", "null"])


@pytest.mark.slow
def test_durable_record_of_a_rate_that_was_typed_in_vain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    more = [
        "--trainer.max_epochs",
        "2",
        "--model.optimizer.lr",
        "0.0001",
        "--model.optimizer.weight_decay",
        "0.1",
        *QUIET,
    ]
    cli = main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), *more, "--model.lr_scheduler.eta_min", "0.001"])
    out = capsys.readouterr().out
    assert "`--model.optimizer.lr 0.0001` has no effect: a run that goes on keeps 0.006." in out
    assert "`--model.optimizer.weight_decay 0.1` has no effect: a run that goes on keeps 0." in out
    assert "`--model.lr_scheduler.eta_min 0.001` has no effect: a run that goes on keeps 0." in out
    group = cli.trainer.optimizers[0].param_groups[0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.006, 0)
    record = yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]
    assert record["optimizer"]["init_args"]["lr"] == 0.006
    assert record["lr_scheduler"]["init_args"]["eta_min"] == 0


@pytest.mark.slow
def test_durable_record_of_other_classes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in (
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"],
        ["--model.lr_scheduler", "null"],
    ):
        for config in ([], ["--config", str(RUN / "config.yaml")]):
            code, lines = ended(["fit", *config, "--ckpt_path", str(RUN / "last.ckpt"), *typed], capsys)
            assert (code, len(lines)) == (2, 1)
            assert "--weights" in lines[0]


@pytest.mark.slow
def test_durable_splits_are_those_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["test", "--ckpt_path", str(RUN / "best.ckpt"), "--data.seed", "5"])
    assert (
        "not comparable: with `--data.seed 5` in place of 0 the splits are not those of the run"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("optimizer_states"), "holds weights and no state of the training"),
        (
            lambda c: c.update(optimizer_states=[{"param_groups": [{"lr": 1}], "state": {}}]),
            "does not hold the state of a",
        ),
        (lambda c: c.update(state_dict=dict.fromkeys(c["state_dict"], 3)), "must be a tensor, got 3"),
        slow(lambda c: c.update(loops={"fit_loop": {}}), "is damaged"),
        slow(lambda c: c.update(global_step="one"), "is damaged"),
        slow(lambda c: c.update(lr_schedulers=[5]), "is damaged"),
        (lambda c: c["callbacks"].update(GradientStrategy=7), "is damaged: its state cannot be restored"),
        (lambda c: c["callbacks"].update({key: "x" for key in c["callbacks"] if "val_acc" in key}), "is damaged"),
    ],
)
def test_durable_against_damaged_checkpoints(
    change: Any, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(RUN / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, RUN / "last.ckpt")
    before = {path: path.read_bytes() for path in RUN.iterdir()}
    code, lines = ended(["fit", "--ckpt_path", str(RUN / "last.ckpt"), "--trainer.max_epochs", "2", *QUIET], capsys)
    assert (code, len(lines)) == (2, 1)
    assert words in lines[0]
    assert {path: path.read_bytes() for path in RUN.iterdir()} == before


def test_durable_loading_changes_no_other_state(run: Path) -> None:
    plain = torch.load(RUN / "last.ckpt", weights_only=True)
    found = LocalCheckpoints().load_checkpoint(RUN / "last.ckpt")
    assert_equal({**plain, "callbacks": 0}, {**found, "callbacks": 0})
