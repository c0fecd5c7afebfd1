"""The command line, through the function that the shell calls."""

import csv
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support.fake_data import make_cifar10
from support.marks import slow
from support.runs import TINY

from deq_lightning import JFB, NPG, UPG, Digits, GradientStrategy, ImageClassification, Implicit, Unrolled
from deq_lightning.app.cli import DEQCLI
from deq_lightning.cli import main

QUICK = [*TINY, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]


def build(*arguments: str) -> DEQCLI:
    """Parse and build without running."""
    return main([*TINY, *arguments], run=False)


def gradient_of(cli: DEQCLI) -> GradientStrategy:
    (gradient,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, GradientStrategy)]
    return gradient


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect status 2 and one or two lines without a traceback, and return them."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    errors = message[message.index("error: ") :]
    assert "Traceback" not in message
    assert len(errors.strip().splitlines()) <= 2
    return errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        main(["fit", *QUICK])
    return folder / "checkpoints" / "digits_upg"


@pytest.fixture
def run(trained: Path, folder: Path) -> Path:
    """A copy of that run in the current folder."""
    return shutil.copytree(trained, folder / "checkpoints" / "digits_upg").relative_to(folder)


# --- what is built ---


@pytest.mark.parametrize("name", ["digits_upg", "digits_upg.yaml"])
def test_a_bundled_config_is_found_from_any_folder(name: str, folder: Path) -> None:
    cli = main(["--config", name], run=False)
    assert isinstance(cli.model, ImageClassification)
    assert isinstance(cli.datamodule, Digits)


def test_a_config_of_the_current_folder_comes_first(folder: Path) -> None:
    (folder / "digits_upg.yaml").write_text(
        "model: {class_path: ImageClassification, init_args: {net: {class_path: MDEQ}}}\n"
        "data: {class_path: Digits, init_args: {batch_size: 7}}\n"
    )
    assert main(["--config", "digits_upg"], run=False).datamodule.batch_size == 7


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], UPG(k=5, damping=0.5)),
        slow(["--gradient", "NPG", "--gradient.k", "3"], NPG(k=3, damping=0.5)),
        slow(["--gradient", "UPG", "--gradient.k", "9", "--gradient.damping", "1"], UPG(k=9, damping=1.0)),
        (["--gradient", "JFB", "--gradient.pretrain_steps", "4"], JFB(pretrain_steps=4)),
        (["--gradient", "Implicit"], Implicit()),
        slow(["--gradient", "Unrolled", "--gradient.unroll_steps", "3"], Unrolled(unroll_steps=3)),
    ],
)
def test_the_gradient_is_swapped_by_one_flag(arguments: list[str], expected: GradientStrategy, folder: Path) -> None:
    assert repr(gradient_of(build(*arguments))) == repr(expected)


def test_the_adjoint_solver_and_the_solver_are_swapped(folder: Path) -> None:
    cli = build(
        *("--gradient", "Implicit", "--gradient.adjoint_solver", "Anderson", "--gradient.adjoint_solver.rtol", "1e-6"),
        *("--model.net.solver", "FixedPointIteration", "--model.net.solver.damping", "0.5"),
    )
    assert "adjoint_solver=Anderson(max_steps=30, rtol=1e-06" in repr(gradient_of(cli))
    assert repr(cli.model.net.solver).startswith("FixedPointIteration(max_steps=5")  # same-named values are kept


@pytest.mark.slow
def test_null_is_typed_at_any_depth(folder: Path) -> None:
    penalty = ["--model.penalty", "JacobianPenalty", "--model.penalty.milestones", "null"]
    for arguments in ([], ["--model.net.init_std", "null", "--model.net.solver=null", *penalty]):
        init_args = build(*arguments).config.model.init_args
        null = (init_args.net.init_args.init_std is None, init_args.net.init_args.solver is None)
        assert null == (bool(arguments), bool(arguments))
    assert init_args.penalty.init_args.milestones is None


def test_none_is_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--config", "pydocs_upg", "--data.prompt=None", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["prompt"] == "None"


def test_a_strategy_of_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text(
        "from deq_lightning import GradientStrategy\n\n\n"
        "class Mine(GradientStrategy):\n"
        "    def attach(self, f, z):\n"
        "        return f(z)\n"
    )
    monkeypatch.syspath_prepend(folder)
    assert type(gradient_of(build("--gradient", "mine.Mine"))).__name__ == "Mine"


@pytest.mark.slow
def test_a_config_before_the_subcommand_has_a_section_for_each(folder: Path) -> None:
    (folder / "all.yaml").write_text("fit: {trainer: {max_steps: 3}}\ntest: {trainer: {max_steps: 5}}\n")
    cli = main(["--config", "all.yaml", "fit", *QUICK])
    assert cli.trainer.max_steps == 3


@pytest.mark.slow
def test_only_the_parser_of_the_typed_subcommand_is_built(run: Path) -> None:
    cli = main(["test", "--ckpt_path", str(run / "best.ckpt")])
    assert list(cli._subcommand_parsers) == ["test"]


@pytest.mark.parametrize("monitor", [[], slow(["--best_checkpoint.monitor", "val_acc"])])
def test_print_config_is_what_runs(folder: Path, capsys: pytest.CaptureFixture[str], monitor: list[str]) -> None:
    typed = ["fit", *QUICK, "--gradient", "NPG", "--gradient.k", "2", *monitor]
    with pytest.raises(SystemExit):
        main([*typed, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    main(typed)
    saved = yaml.safe_load((folder / "checkpoints/digits_upg/config.yaml").read_text())
    assert saved == printed
    assert printed["gradient"]["init_args"]["k"] == 2
    assert printed["best_checkpoint"]["mode"] == ("max" if monitor else "min")  # unread where the task chooses


# --- runs ---


def test_a_run_leaves_its_folder(trained: Path) -> None:
    names = {path.name.split(".")[0] for path in trained.iterdir()}
    assert {"config", "best", "last", "events"} <= names
    for name in ("best.ckpt", "last.ckpt"):
        torch.load(trained / name, weights_only=True)


def test_a_second_run_never_touches_the_first(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    main(["fit", *QUICK])
    assert (run.parent / "digits_upg-2" / "last.ckpt").is_file()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_fit_ends_with_the_test_and_the_next_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = main(["fit", *QUICK])
    out = capsys.readouterr().out
    assert "gradient: UPG(pretrain_steps=0, unroll_steps=10, k=5, damping=0.5, checkpoint=False)" in out
    assert "best checkpoint: checkpoints/digits_upg/best.ckpt (val_acc 0." in out
    assert f"test_acc {cli.trainer.callback_metrics['test_acc']:.4g}" in out
    assert out.strip().endswith("next: python -m deq_lightning predict --ckpt_path checkpoints/digits_upg/best.ckpt")


@pytest.mark.slow
def test_without_checkpoints(folder: Path) -> None:
    main(["fit", *QUICK, "--trainer.enable_checkpointing", "false"])
    assert not list(folder.rglob("*.ckpt"))


def test_fast_dev_run_leaves_nothing(folder: Path) -> None:
    main(["fit", *TINY, "--trainer.fast_dev_run", "true"])
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("subcommand", ["test", "validate"])
def test_a_checkpoint_alone_is_evaluated(subcommand: str, run: Path) -> None:
    before = sorted(run.iterdir())
    cli = main([subcommand, "--ckpt_path", str(run / "best.ckpt")])
    assert 0 <= cli.trainer.callback_metrics[f"{subcommand[:4].replace('vali', 'val')}_acc"] <= 1
    assert sorted(run.iterdir()) == before


def test_predict_writes_a_row_per_sample(run: Path) -> None:
    cli = main(["predict", f"--ckpt_path={run / 'best.ckpt'}"])
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    cli.datamodule.setup("test")
    labels = [label for _, label in cli.datamodule.test_set]
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert [int(row["label"]) for row in rows] == [int(label) for label in labels]
    assert {"prediction", "probability", "solver_steps", "solver_residual"} < rows[0].keys()
    main(["predict", f"--ckpt_path={run / 'best.ckpt'}", "--predictions.path", "elsewhere/p.csv"])
    assert len(Path("elsewhere/p.csv").read_text().splitlines()) == 361


def test_what_is_typed_beats_the_checkpoint(run: Path) -> None:
    more = ["--gradient", "JFB", "--trainer.max_epochs", "2", "--test_after_fit", "false"]
    cli = main(["fit", "--ckpt_path", str(run / "last.ckpt"), *more])
    assert isinstance(cli.model.net.gradient, JFB)
    assert cli.trainer.current_epoch == 2
    assert cli.model.net.gradient.step == cli.trainer.global_step == 4
    assert not (run.parent / "digits_upg-2").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["gradient"]["class_path"] == "deq_lightning.JFB"


def test_a_task_loads_without_further_arguments(run: Path) -> None:
    task = ImageClassification.load_from_checkpoint(run / "best.ckpt")
    saved = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in task.state_dict().items())


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--config", "digit_upg"], ["no config `digit_upg`", "Did you mean digits_upg"]),
        ([], ["--config NAME", "digits_upg"]),
        ([*TINY, "--gradient", "UPQ"], ["`--gradient`: there is no class `UPQ`", "Did you mean UPG", "Implicit"]),
        ([*TINY, "--gradient.kk", "3"], ["no argument `kk`", "Did you mean k?"]),
        ([*TINY, "--gradient.k", "0"], ["`k` must be 1 or more, got 0", "`--gradient JFB`"]),
        slow([*TINY, "--gradient.damping", "1.5"], ["`damping` must be in (0, 1], got 1.5"]),
        slow([*TINY, "--model.net", "MDQE"], ["no class `MDQE`", "Did you mean MDEQ"]),
        slow([*TINY, "--model.net.solver.max_step", "3"], ["no argument `max_step`", "Did you mean max_steps"]),
        slow([*TINY, "--model.net.solver.max_steps", "0"], ["`max_steps` must be 1 or more, got 0"]),
        ([*TINY, "--model.net.groups", "3"], ["`groups` must be even"]),
        ([*TINY, "--trainer.max_epochs", "many"], ["`--trainer.max_epochs`", "int", "many"]),
        slow([*TINY, "--trainer.precision", "15"], ["15"]),
        slow([*TINY, "--nonsense", "3"], ["--nonsense"]),
        ([*TINY, "--model.optimizer.lr", "-1"], ["Invalid learning rate: -1"]),
        ([*TINY, "--trainer.callbacks+=JFB"], ["goes under `--gradient`"]),
        ([*QUICK, "--best_checkpoint.monitor", "val_accc"], ["val_accc", "val_acc"]),
        slow([*QUICK, "--model.net.solver", "NormalCG"], ["`NormalCG` solves the adjoint systems", "use `Anderson`"]),
        slow(
            [*QUICK, "--gradient", "Implicit", "--gradient.reuse_inverse", "true", "--model.net.solver", "Anderson"],
            ["`reuse_inverse` needs `Broyden`", "got `Anderson`"],
        ),
        slow(
            [*TINY, "--model.compile", "true", "--model.penalty", "JacobianPenalty"],
            ["`penalty` differentiates the cell twice", "`compile`"],
        ),
        slow(
            [*TINY, "--model.penalty", "JacobianPenalty", "--model.penalty.weight", "-1"],
            ["`weight` must be 0 or more"],
        ),
        slow([*TINY, "--guard.patience", "0"], ["`patience` must be 1 or more"]),
        slow([*TINY, "--data.batch_size", "0"], ["`batch_size` must be 1 or more, got 0"]),
        (
            ["--config", "cifar_upg", "--data.root", "nowhere"],
            ["`CIFAR10` was not found under `nowhere", "--data.root"],
        ),
        slow(
            ["--config", "cifar_upg", "--data.val_size", "200"], ["`val_size` must leave 10 of the 100", "val_size 10`"]
        ),
        (["--ckpt_path", "nowhere.ckpt"], ["no checkpoint `nowhere.ckpt`"]),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str],
    messages: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cifar10(folder / "data", monkeypatch)
    error = refused(["fit", *arguments], capsys)
    for message in messages:
        assert message in error


class Call:
    """Pickles as a call that leaves a trace."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def test_a_run_starts_from_the_weights_that_fit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = ["--model.optimizer.lr", "0.0", "--model.net.final_channels", "12", "--seed_everything", "7"]
    cli = main(["fit", *QUICK, *still, "--weights", str(run / "best.ckpt")])
    saved = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    own = dict(cli.model.named_parameters())
    fresh = {name for name, tensor in own.items() if tensor.shape != saved[name].shape}
    assert fresh and all(name.startswith("net.head") for name in fresh)
    assert all(torch.equal(own[name], saved[name]) for name in own.keys() - fresh)
    assert "fresh are tensors of `net.head`" in capsys.readouterr().out
    assert cli.trainer.global_step == 2


@pytest.mark.slow
def test_a_checkpoint_to_continue_wins_over_weights(run: Path) -> None:
    cli = main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "2", "--weights", "moved.ckpt"])
    assert cli.trainer.current_epoch == 2


@pytest.mark.slow
def test_weights_that_fit_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"other": torch.zeros(1)}}, "other.ckpt")
    assert "no tensor of `other.ckpt` has the name and shape" in refused(
        ["fit", *TINY, "--weights", "other.ckpt"], capsys
    )
    assert "there is no checkpoint `none.ckpt`" in refused(["fit", *TINY, "--weights", "none.ckpt"], capsys)


def test_damaged_and_foreign_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / "best.ckpt").read_bytes()
    (run / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or not a checkpoint" in refused(["test", "--ckpt_path", str(run / "truncated.ckpt")], capsys)
    (run / "empty.ckpt").write_bytes(b"")
    assert "is damaged or not a checkpoint" in refused(["test", "--ckpt_path", str(run / "empty.ckpt")], capsys)
    (run / "text.ckpt").write_text("not a checkpoint")
    assert "is not a checkpoint" in refused(["test", "--ckpt_path", str(run / "text.ckpt")], capsys)
    torch.save([1, 2], run / "list.ckpt")
    assert "it has no `state_dict`" in refused(["test", "--ckpt_path", str(run / "list.ckpt")], capsys)
    assert "There is `" in refused(["test", "--ckpt_path", str(run / "bets.ckpt")], capsys)


@pytest.mark.parametrize("arguments", [["test"], ["fit"], ["predict"], ["fit", *QUICK], ["test", *TINY]])
def test_a_checkpoint_with_a_call_is_refused_and_nothing_is_executed(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = torch.load(run / "best.ckpt", weights_only=True)
    torch.save({**saved, "hyper_parameters": Call()}, run / "call.ckpt")
    assert "could execute code" in refused([*arguments, "--ckpt_path", str(run / "call.ckpt")], capsys)
    (run / "raw.ckpt").write_bytes(pickle.dumps(Call()))
    refused([*arguments, "--ckpt_path", str(run / "raw.ckpt")], capsys)
    assert not Path("executed").exists()


def test_a_checkpoint_of_another_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["test", "--config", "digits_upg", "--ckpt_path", str(run / "best.ckpt")]
    assert "is a checkpoint of another model" in refused(arguments, capsys)


def test_a_checkpoint_without_its_config(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").unlink()
    assert "has no config.yaml beside it" in refused(["test", "--ckpt_path", str(run / "best.ckpt")], capsys)


def test_a_class_has_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--gradient.help", "NPG"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "Neumann-series phantom gradient" in text
    assert "--gradient.damping" in text
