"""The loss, the metrics and the table of semantic segmentation, on numbers worked out by hand."""

import csv
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.fake_data import make_cityscapes
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from deq_lightning import FixedPointIteration, MDEQSegmentation, PolynomialToEnd, SemanticSegmentation
from deq_lightning.cli import main
from deq_lightning.models import Equilibrium, Network


class Given(Network):
    """Takes the images for the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Equilibrium]]:
        return self.scale * x, []


def logits_of(prediction: list[list[int]], classes: int = 3) -> Tensor:
    """Return logits, (1, classes, height, width), with this prediction."""
    return 4.0 * nn.functional.one_hot(torch.tensor([prediction]), classes).permute(0, 3, 1, 2)


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    return pl.Trainer(**{"default_root_dir": folder, **quiet, **options})


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_the_loss_is_the_weighted_mean_over_labelled_pixels(weights: list[float] | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[0, 1:3] = labels[1, :, 0] = 255
    total = mass = 0.0
    for scores, label in zip(logits.permute(0, 2, 3, 1).reshape(-1, 3), labels.flatten(), strict=True):
        if label != 255:
            weight = 1.0 if weights is None else weights[label]
            total += weight * (math.log(sum(math.exp(score) for score in scores)) - scores[label].item())
            mass += weight
    task = SemanticSegmentation(Given(), 3, weights).double()
    loss, equilibria = task.loss((logits, labels))
    assert loss.item() == pytest.approx(total / mass, rel=1e-12) and equilibria == []


def test_no_labelled_pixel_is_no_loss_and_no_gradient() -> None:
    task = SemanticSegmentation(Given(), 3, [0.5, 2.0, 3.0])
    loss, _ = task.loss((torch.randn(2, 3, 4, 5), torch.full((2, 4, 5), 255)))
    loss.backward()
    assert loss == 0 and task.net.scale.grad == 0


def test_logits_are_brought_to_the_size_of_the_labels() -> None:
    """Corners stay corners, and what lies between them is on the straight line."""
    coarse = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    down, across = torch.linspace(0, 1, 5).double().view(5, 1), torch.linspace(0, 1, 9).double()
    top = coarse[..., 0:1, 0:1] * (1 - across) + coarse[..., 0:1, 1:2] * across
    bottom = coarse[..., 1:2, 0:1] * (1 - across) + coarse[..., 1:2, 1:2] * across
    labels = torch.randint(0, 3, (1, 5, 9))
    expected = nn.functional.cross_entropy(top * (1 - down) + bottom * down, labels)
    loss, _ = SemanticSegmentation(Given(), 3).double().loss((coarse, labels))
    torch.testing.assert_close(loss, expected)


PREDICTION = [[0, 0, 1, 1], [0, 1, 1, 1]]
LABELS = [[0, 0, 0, 1], [255, 0, 1, 255]]


def test_metrics_by_hand(folder: Path) -> None:
    """Of six labelled pixels four are right. Class 0: 2 of 4 pixels in the union, class 1: 2 of 4, class 2: absent."""
    batch = (logits_of(PREDICTION), torch.tensor([LABELS]))
    loader = DataLoader([(x, y) for x, y in zip(*batch, strict=True)])
    task = SemanticSegmentation(Given(), 3)
    (metrics,) = trainer(folder).test(task, loader, verbose=False)
    assert metrics["test_acc"] == pytest.approx(4 / 6)
    assert metrics["test_miou"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert metrics["test_loss"] == pytest.approx(task.loss(batch)[0].item())


def test_metrics_are_over_the_whole_split(folder: Path) -> None:
    """Intersections and unions are summed over the images before they are divided."""
    one, two = ([[0, 0, 0, 0]], [[0, 0, 0, 1]]), ([[1, 1, 2, 1]], [[0, 1, 2, 255]])
    samples = [(logits_of(prediction)[0], torch.tensor(labels)) for prediction, labels in (one, two)]
    (metrics,) = trainer(folder).validate(SemanticSegmentation(Given(), 3), DataLoader(samples), verbose=False)
    assert metrics["val_miou"] == pytest.approx((3 / 5 + 1 / 3 + 1) / 3)
    assert metrics["val_acc"] == pytest.approx(5 / 7)


def test_the_table_has_a_row_per_image() -> None:
    x = torch.cat([logits_of(PREDICTION), logits_of(PREDICTION)])
    y = torch.stack([torch.tensor(LABELS), torch.full((2, 4), 255)])
    columns = SemanticSegmentation(Given(), 3).predict_step((x, y), 0)
    assert columns["accuracy"][0] == pytest.approx(4 / 6) and columns["accuracy"][1].isnan()
    sure = math.exp(4) / (math.exp(4) + 2)
    assert columns["probability"].tolist() == pytest.approx([sure, sure])
    assert columns.keys() == {"accuracy", "probability"}  # nothing was solved


def test_the_solvers_figures_are_in_the_table() -> None:
    net = MDEQSegmentation(num_classes=3, channels=(4, 4), groups=2, solver=FixedPointIteration(max_steps=3))
    columns = SemanticSegmentation(net, 3).eval().predict_step((torch.randn(2, 3, 16, 16), torch.ones(2, 16, 16)), 0)
    assert columns["solver_steps"].tolist() == [3, 3]
    assert columns["solver_residual"].shape == (2,) and columns["solver_residual"].isfinite().all()


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, math.nan]])
def test_bad_class_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="`class_weights` must be 3 positive numbers, one for each class, got"):
        SemanticSegmentation(Given(), 3, weights)
    with pytest.raises(ValueError, match="`num_classes` must be 2 or more, got 1"):
        SemanticSegmentation(Given(), 1)


def test_polynomial_to_end_spans_the_run(folder: Path) -> None:
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return PolynomialToEnd(optimizer, power=0.9)

    task = SemanticSegmentation(Given(), 3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr_scheduler=schedule)
    samples = [(logits_of(PREDICTION)[0], torch.tensor(LABELS))] * 4
    fit = trainer(folder, callbacks=[Watch()], max_steps=6, enable_checkpointing=False)
    fit.fit(task, DataLoader(samples))
    assert rates == pytest.approx([0.1 * (1 - step / 6) ** 0.9 for step in range(6)])
    assert fit.optimizers[0].param_groups[0]["lr"] == 0


def test_a_resumed_schedule_keeps_its_own_end() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1)
    short, long = PolynomialToEnd(optimizer), PolynomialToEnd(optimizer)
    short.end_at(4)
    long.end_at(8)
    long.load_state_dict(short.state_dict())
    assert long.total_iters == 8


def test_a_run_selects_by_miou_and_predicts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cityscapes(folder / "data", monkeypatch)
    small = [
        *("--config", "cityscapes_implicit_small", "--data.crop_size", "[32, 64]", "--data.scale", "[0.05, 0.06]"),
        *("--data.val_size", "4", "--data.num_workers", "0", "--model.net.channels", "[8, 8]"),
        *("--model.net.solver.max_steps", "3", "--trainer.max_epochs", "1", "--gradient.pretrain_steps", "2"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    ]
    cli = main(["fit", *small])
    metrics = cli.trainer.callback_metrics
    assert {"test_loss", "test_acc", "test_miou", "test_solver_steps"} <= metrics.keys()
    assert all(value.isfinite() for value in metrics.values())
    checkpoint = folder / "checkpoints/cityscapes_implicit_small/best.ckpt"
    assert "best.ckpt (val_miou 0." in capsys.readouterr().out and checkpoint.is_file()
    main(["predict", "--ckpt_path", str(checkpoint)])
    with checkpoint.with_name("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(0 <= float(row["accuracy"]) <= 1 for row in rows)
