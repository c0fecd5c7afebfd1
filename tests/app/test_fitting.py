"""Sizes come from the data: what is not typed follows from it, and what cannot fit is said in a line."""

from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule
from support.fake_data import make_cifar10, make_ppi, make_tu, make_wikitext
from support.marks import slow
from support.runs import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import Equilibrium, ImplicitTask, Network
from deq_lightning.cli import main

FIT_CIFAR = ["fit", "--config", "digits_upg", "--data", "CIFAR10", "--data.val_size", "10"]
ONE_STEP = [*QUIET, "--trainer.fast_dev_run", "true"]


def net_of(*arguments: str) -> nn.Module:
    return main([*arguments], run=False).model.net


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, *ONE_STEP])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.slow
def test_other_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar10(folder, monkeypatch)
    cli = main([*FIT_CIFAR, "--data.root", str(folder), *ONE_STEP])
    assert next(cli.model.net.stem.parameters()).shape[1] == 3


def test_other_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch, name="MUTAG", labels=7)
    arguments = ("--config", "cox2_upg", "--data.name", "MUTAG", "--data.root", str(folder), "--data.folds", "4")
    assert net_of(*arguments).in_features == 7


@pytest.mark.slow
def test_another_vocabulary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wikitext(folder, monkeypatch)
    data = ("--data", "WikiText2", "--data.root", str(folder / "wikitext-2"), "--data.vocab_size", "20")
    small = ("--config", "pydocs_upg", "--model.net.cutoffs", "[]", *data)
    assert net_of(*small).vocab_size == 20
    assert net_of(*small, "--data.vocab_size", "null").vocab_size > 20


@pytest.mark.parametrize("net", ["MON", "MDEQ", *map(slow, ["FPN", "NeuralODE", "MONConv", "MONMultiTier"])])
def test_networks_of_every_family_take_small_images(net: str, folder: Path) -> None:
    """The published sizes are for 28 or 32 pixels."""
    cli = main(["fit", "--config", "digits_upg", "--model.net", net, *ONE_STEP])
    assert cli.trainer.global_step == 1


def test_the_eigenvalue_of_graphs_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ppi(folder, monkeypatch, features=6, labels=5)
    net = net_of(
        "--config", "ppi_upg", "--data.root", "PPI", "--data.normalization", "none", "--model.net.widths", "[8]"
    )
    assert net.perron == pytest.approx(2, abs=1e-3)
    assert (net.in_features, net.num_classes) == (6, 5)


def test_what_is_typed_wins_where_it_fits() -> None:
    assert net_of("--config", "digits_upg", "--model.net.num_classes", "12").head.classifier.out_features == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("--model.net.in_channels", "3"): "error: `in_channels` of the network must be 1 for `Digits`, got 3. Type "
        "`--model.net.in_channels 1`, or leave it out.",
        ("--model.net.num_classes", "3"): "`num_classes` of the network must be 10 or more for `Digits`, got 3",
        ("--model.net", "DenseFPN"): "`DenseFPN` cannot take images of (1, 8, 8) of `Digits`: mat1 and mat2 shapes",
        ("--model.net", "IGNNGraphClassifier"): "`IGNNGraphClassifier` cannot take images of (1, 8, 8) of `Digits`",
        ("--data", "KarateClub"): "`ImageClassification` takes images with a class each, and `KarateClub` has graphs "
        "with a class for each node. Type `--model NodeClassification`, or another `--data`.",
        ("--data", "PythonDocs"): "and `PythonDocs` has a text. Type `--model LanguageModeling`, or another `--data`.",
        ("--model", "GraphClassification"): "`GraphClassification` takes graphs with a class each",
    }.items(),
)
def test_what_cannot_fit_is_a_line(
    arguments: tuple[str, str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "--config", "digits_upg", *arguments)
    assert not any(folder.iterdir())


def test_several_labels_need_their_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_ppi(folder, monkeypatch, features=6, labels=5)
    arguments = ("--config", "ppi_upg", "--data.root", str(folder / "PPI"), "--model.net.widths", "[8]")
    line = refusal(capsys, *arguments, "--model.multilabel", "false")
    assert "takes graphs with several labels for each node, as `PPI` has, if `--model.multilabel true`" in line


@pytest.mark.slow
def test_the_config_that_is_printed_and_saved_has_the_sizes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cifar10(folder, monkeypatch)
    arguments = [*FIT_CIFAR, "--data.root", str(folder)]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["net"]["init_args"]["in_channels"] == 3
    main([*arguments, *QUIET, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"])
    saved = yaml.safe_load(Path("checkpoints/digits_upg/config.yaml").read_text())
    assert saved["model"]["init_args"]["net"]["init_args"]["in_channels"] == 3


def test_a_config_is_printed_without_its_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "cox2_upg", "--print_config"])
    assert exit_.value.code == 0
    assert "name: COX2" in capsys.readouterr().out


class Line(Network):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Equilibrium]]:
        return self.weight(x), []


class Points(LightningDataModule):
    """y = 2x; says nothing of its samples."""

    def train_dataloader(self) -> DataLoader:
        x = torch.arange(8.0)[:, None] / 8
        return DataLoader(TensorDataset(x, 2 * x), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


class LeastSquares(ImplicitTask):
    """A task of somebody's own, with a figure of its own."""

    monitor = "val_mse"

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Equilibrium]]:
        x, y = batch
        return (self.net(x)[0] - y).square().mean(), []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_mse", self.loss(batch)[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_mse", self.loss(batch)[0])


def own(*arguments: str) -> list[str]:
    parts = [("--model", "LeastSquares"), ("--model.net", "Line"), ("--data", "Points")]
    named = [word for flag, name in parts for word in (flag, f"{__name__}.{name}")]
    return ["fit", *named, *QUIET, "--trainer.max_epochs", "2", *arguments]


def test_a_task_names_its_figure(folder: Path) -> None:
    best = main(own("--name", "own")).config_init.fit.best_checkpoint
    assert (best.monitor, best.mode) == ("val_mse", "min")
    assert Path("checkpoints/own/best.ckpt").is_file()


class Undeclared(LeastSquares):
    """Does not say which figure it is."""

    monitor = ImplicitTask.monitor


def test_a_task_that_names_no_figure_is_selected_by_what_it_logs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([word.replace("LeastSquares", "Undeclared") for word in own("--name", "own")])
    assert "best checkpoint: checkpoints/own/best.ckpt (val_mse " in capsys.readouterr().out


def test_a_figure_that_nobody_logs_is_refused_before_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(own("--name", "own", "--best_checkpoint.monitor", "val_acc"))
    assert exit_.value.code == 2
    assert "must be a figure of the validation, got val_acc. There is val_mse." in capsys.readouterr().err
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("config", "figure", "mode"),
    [
        ("digits_upg", "val_acc", "max"),
        ("karate_upg", "val_acc", "max"),
        ("pydocs_upg", "val_ppl", "min"),
    ],
)
def test_the_figures_of_our_tasks(config: str, figure: str, mode: str) -> None:
    best = main(["--config", config], run=False).config_init.best_checkpoint
    assert (best.monitor, best.mode) == (figure, mode)


def test_a_figure_that_is_typed_is_judged_by_its_metric() -> None:
    best = main(["--config", "digits_upg", "--best_checkpoint.monitor", "val_loss"], run=False)
    assert best.config_init.best_checkpoint.mode == "min"
