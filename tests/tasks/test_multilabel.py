"""Several labels at once: loss, figures and tables against scikit-learn, and a run on arrays."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from support.runs import QUIET, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import EquilibriumMLP, MultiLabel, Network, PredictionWriter
from deq_lightning.app.fitting import check_task
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError
from deq_lightning.models import Equilibrium
from deq_lightning.samples import IMAGE_LABELS, ROW_LABELS, Samples


class Given(Network):
    """Takes the inputs for the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Equilibrium]]:
        return self.scale * x, []


def drawn(rows: int = 50, labels: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(rows, labels, generator=g) > 0.6).float()
    return 0.3 * torch.randn(rows, labels, generator=g) + 0.3 * y, y  # logits between 0 and 1 are no probabilities


def evaluated(task: MultiLabel, x: Tensor, y: Tensor, folder: Path) -> dict[str, float]:
    (figures,) = trainer(folder).test(task, DataLoader(TensorDataset(x, y), batch_size=8), verbose=False)
    return figures


@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_the_figures_are_scikit_learns(threshold: float, folder: Path) -> None:
    x, y = drawn()
    p = x.double().sigmoid().numpy()
    predicted, true = p > threshold, y.numpy()
    figures = evaluated(MultiLabel(Given(), num_classes=4, threshold=threshold), x, y, folder)
    assert figures["test_f1"] == pytest.approx(f1_score(true, predicted, average="micro"))
    assert figures["test_exact_acc"] == pytest.approx(accuracy_score(true, predicted))
    assert figures["test_auroc"] == pytest.approx(roc_auc_score(true, p, average="macro"))
    losses = [log_loss(true[:, label], p[:, label]) for label in range(4)]
    assert figures["test_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("defined", [0, 1, 2])
def test_labels_that_never_change_have_no_curve(defined: int, folder: Path) -> None:
    x, y = drawn()
    y[:, defined:] = torch.tensor([0.0, 1, 0, 1])[defined:]
    figure = evaluated(MultiLabel(Given(), num_classes=4), x, y, folder)["test_auroc"]
    wanted = [roc_auc_score(y[:, label], x[:, label]) for label in range(defined)]
    assert figure == pytest.approx(np.mean(wanted) if defined else np.nan, nan_ok=True)


def test_one_label_is_enough(folder: Path) -> None:
    x, y = drawn(labels=1)
    figures = evaluated(MultiLabel(Given(), num_classes=1), x, y, folder)
    assert figures["test_exact_acc"] == pytest.approx(accuracy_score(y, x > 0))
    assert figures["test_auroc"] == pytest.approx(roc_auc_score(y, x))


def test_the_table() -> None:
    task, x = MultiLabel(Given(), num_classes=2), torch.tensor([[1.0, -2], [-1, 0.5]])
    labels = torch.tensor([[1.0, 0], [1, 1]])
    named = {"prediction_0": [1, 0], "prediction_1": [0, 1], "label_0": [1, 1], "label_1": [0, 1]}
    table = task.eval().predict_step((x, labels), 0)
    assert {name: values.tolist() for name, values in table.items()} == named
    task.class_names = ["red", "round"]
    assert list(task.predict(x)) == ["prediction_red", "prediction_round"]
    task.every_probability = True
    torch.testing.assert_close(task.predict(x)["probabilities"], x.sigmoid())


def test_what_does_not_fit_is_said() -> None:
    for samples in (ROW_LABELS, IMAGE_LABELS):
        check_task(MultiLabel, Samples(samples, classes=2), "data")
    x, y = drawn()
    for labels, given in ((3, y), (4, y[:, :3])):
        with pytest.raises(CombinationError, match=f"one logit for each of `num_classes={labels}` labels, .* got "):
            MultiLabel(Given(), num_classes=labels).loss((x, given))
    assert MultiLabel(EquilibriumMLP(4, 2, width=4)).mode_of("val_f1") == "max"


@pytest.mark.slow
def test_a_run_on_arrays(folder: Path) -> None:
    random = np.random.RandomState(0)
    x = random.randn(300, 4).astype(np.float32)
    np.savez("rows.npz", x=x, y=x[:, :3] > 0)
    data = ["--data", "Arrays", "--data.path", "rows.npz", "--data.num_workers", "0", "--data.batch_size", "32"]
    model = ["--model", "MultiLabel", "--model.net", "EquilibriumMLP", "--model.net.width", "8"]
    cli = main([*data, *model, *QUIET, "--model.optimizer.lr", "0.03"], run=False)
    assert cli.model.num_classes == 3
    run = trainer(folder, PredictionWriter("a.csv", probabilities=True), max_steps=30)
    run.fit(cli.model, cli.datamodule)
    run.predict(cli.model, cli.datamodule)
    rows = list(csv.DictReader(Path("a.csv").open()))
    assert len(rows) == 60
    right = [row[f"prediction_{label}"] == row[f"label_{label}"] for row in rows for label in range(3)]
    assert np.mean(right) > 0.8
    for row in rows:
        assert all(
            (float(row[f"probability_{label}"]) > 0.5) == (row[f"prediction_{label}"] == "1") for label in range(3)
        )
