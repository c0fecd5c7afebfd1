"""Losses, figures and tables of the tasks on graphs, on numbers worked out by hand."""

import csv
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.fake_data import make_ppi, make_tu
from support.marks import slow
from support.runs import QUIET
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torchmetrics.classification import MultilabelF1Score

from deq_lightning import (
    PPI,
    Chains,
    EquilibriumMonitor,
    GraphClassification,
    GraphDataModule,
    IGNNGraphClassifier,
    IGNNNodeClassifier,
    IGNNSkipNodeClassifier,
    KarateClub,
    NodeClassification,
    StepsToEnd,
    TUGraphs,
)
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import NODES


class Given(Network):
    """Takes the features for the logits."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pooled = pooled

    def forward(self, x: Data) -> tuple[Tensor, list[Equilibrium]]:
        logits = self.scale * x.x
        return (logits[x.ptr[:-1]] if self.pooled else logits), []


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    return pl.Trainer(**{"default_root_dir": folder, "enable_checkpointing": False, **quiet, **options})


def graph(logits: Tensor, y: Tensor, **masks: Tensor) -> Data:
    return Data(x=logits, y=y, edge_index=torch.zeros(2, 0, dtype=torch.long), **masks)


def nodes(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=g), torch.randint(0, classes, (count,), generator=g)


def evaluated(task: pl.LightningModule, graphs: list[Data], folder: Path, batch_size: int = 2) -> dict[str, float]:
    (metrics,) = trainer(folder).test(task, DataLoader(graphs, batch_size=batch_size), verbose=False)
    return metrics


def test_graphs_are_counted_one_by_one(folder: Path) -> None:
    """Over a whole split, also where the last batch is smaller and graphs have different sizes."""
    drawn = [nodes(2 + number, 3, number) for number in range(5)]
    graphs = [graph(logits, y[:1]) for logits, y in drawn]
    logits, labels = torch.stack([one.x[0] for one in graphs]), torch.cat([one.y for one in graphs])
    metrics = evaluated(GraphClassification(Given(pooled=True)), graphs, folder)
    assert metrics["test_acc"] == pytest.approx((logits.argmax(dim=1) == labels).float().mean().item())
    losses = [math.log(row.exp().sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    assert metrics["test_loss"] == pytest.approx((sum(losses) / 5).item(), rel=1e-5)


def test_only_the_nodes_of_the_split_count(folder: Path) -> None:
    logits, y = nodes(12, 4, 0)
    split = torch.arange(12) % 3
    masks = {f"{name}_mask": split == number for number, name in enumerate(("train", "val", "test"))}
    task = NodeClassification(Given())
    loss, _ = task.loss(Batch.from_data_list([graph(logits, y, **masks)]))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits[::3], y[::3]))
    metrics = evaluated(task, [graph(logits, y, **masks)], folder)
    assert metrics["test_acc"] == pytest.approx((logits.argmax(dim=1) == y)[2::3].float().mean().item())
    assert metrics["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits[2::3], y[2::3]).item())
    unmasked, _ = task.loss(graph(logits, y))
    torch.testing.assert_close(unmasked, nn.functional.cross_entropy(logits, y))


def test_the_micro_f1_is_that_of_the_whole_split(folder: Path) -> None:
    """By its definition, and by torchmetrics' own; logits between 0 and 1 are not probabilities."""
    graphs = []
    for number in range(3):
        logits, _ = nodes(3 + number, 5, number)
        graphs.append(graph(logits.abs() / 9 - 0.05, (nodes(3 + number, 5, 9 + number)[0] > 0).float()))
    logits, y = torch.cat([one.x for one in graphs]), torch.cat([one.y for one in graphs])
    metrics = evaluated(NodeClassification(Given(), multilabel=True), graphs, folder)
    right = ((logits > 0) & (y > 0)).sum().item()
    expected = 2 * right / ((logits > 0).sum().item() + y.sum().item())
    assert metrics["test_f1"] == pytest.approx(expected)
    micro = MultilabelF1Score(num_labels=5, average="micro")((logits > 0).float(), y.long())
    assert metrics["test_f1"] == pytest.approx(micro.item())
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, y)
    assert metrics["test_loss"] == pytest.approx(entropy.item(), rel=1e-5)


def test_the_tables() -> None:
    logits, y = nodes(4, 3, 0)
    single = NodeClassification(Given()).predict_step(graph(logits, y), 0)
    assert single["prediction"].tolist() == logits.argmax(dim=1).tolist() and single["label"].tolist() == y.tolist()
    torch.testing.assert_close(single["probability"], logits.softmax(dim=1).amax(dim=1))
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    several = NodeClassification(Given(), multilabel=True).predict_step(
        graph(torch.tensor([[1.0, 2, -1], [-1, -2, 3]]), labels), 0
    )
    assert {name: values.tolist() for name, values in several.items()} == {
        "predicted": [2, 1],
        "labels": [2, 0],
        "right": [1, 0],
    }


@pytest.mark.parametrize("masked", [False, True])
def test_every_node_has_the_solvers_figures_of_its_own_graph(masked: bool) -> None:
    torch.manual_seed(0)
    task = NodeClassification(IGNNNodeClassifier(3, 2, [4])).eval()
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    lone = torch.zeros(2, 0, dtype=torch.long)
    mask = torch.tensor([True, False, True, True])
    graphs = [Data(x=torch.rand(4, 3), edge_index=path, y=torch.tensor([0, 1, 0, 1]), test_mask=mask)]
    graphs += [Data(x=torch.rand(2, 3), edge_index=lone, y=torch.tensor([1, 0]), test_mask=torch.tensor([True, True]))]
    for data in graphs if not masked else ():
        del data.test_mask
    with torch.no_grad():
        together = task.predict_step(Batch.from_data_list(graphs), 0)
        alone = [task.predict_step(Batch.from_data_list([data]), 0) for data in graphs]
    assert together["solver_steps"].unique().numel() == 2
    for name, values in together.items():
        torch.testing.assert_close(values, torch.cat([columns[name] for columns in alone]))


def small(kind: type, **options: object) -> Network:
    torch.manual_seed(0)
    return kind(**options)


def fitted(folder: Path, task: pl.LightningModule, data: pl.LightningDataModule, **options: object) -> dict[str, float]:
    fit = trainer(folder, **{"max_epochs": 2, "log_every_n_steps": 1, **options})
    fit.fit(task, data)
    return {name: value.item() for name, value in fit.callback_metrics.items()}


def test_graphs_train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch)
    task = GraphClassification(small(IGNNGraphClassifier, in_features=3, width=8))
    metrics = fitted(folder, task, TUGraphs(str(folder), folds=4, batch_size=5))
    assert metrics.keys() >= {"train_loss", "val_loss", "val_acc", "solver_steps", "val_solver_residual"}
    assert metrics["val_solver_residual"] <= 1e-5
    assert all(layer.weight.abs().sum(dim=1).max() <= 0.9 + 1e-6 for layer in task.net.layers)


def test_nodes_of_several_graphs_train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ppi(folder, monkeypatch, features=6, labels=5)
    net = small(IGNNSkipNodeClassifier, in_features=6, num_classes=5, widths=[8])
    metrics = fitted(folder, NodeClassification(net, multilabel=True), PPI(str(folder / "PPI")))
    assert 0 <= metrics["val_f1"] <= 1 and math.isfinite(metrics["val_loss"])


@pytest.mark.parametrize(("precision", "rtol"), [("64-true", 1e-4), slow("bf16-true", 0.05)])
def test_the_trainers_precision_changes_the_rounding_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str, rtol: float
) -> None:
    """Also where it is that of the parameters, and so must become that of the graphs."""
    make_tu(folder, monkeypatch)
    make_ppi(folder, monkeypatch, features=6, labels=5)

    def losses(precision: str) -> list[float]:
        graphs = GraphClassification(small(IGNNGraphClassifier, in_features=3, width=8, dropout=0.0))
        net = small(IGNNSkipNodeClassifier, in_features=6, num_classes=5, widths=[8])
        runs = [
            (graphs, TUGraphs(str(folder), folds=4, batch_size=5)),
            (NodeClassification(net, multilabel=True), PPI(str(folder / "PPI"))),
        ]
        found = [fitted(folder, task, data, precision=precision, max_epochs=1) for task, data in runs]
        return [metrics[loss] for metrics in found for loss in ("train_loss", "val_loss")]

    assert losses(precision) == pytest.approx(losses("32-true"), rel=rtol)


@pytest.mark.slow
def test_chains_are_learnt_over_their_length(folder: Path) -> None:
    data = Chains(length=6, chains_per_class=6, features=5, train_size=12, val_size=20, test_size=40)
    net = small(IGNNNodeClassifier, in_features=5, widths=[8], dropout=0.0)
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    metrics = fitted(folder, NodeClassification(net, optimizer=optimizer), data, max_epochs=60)
    assert metrics["val_acc"] >= 0.95
    (metrics,) = trainer(folder).test(NodeClassification(net), datamodule=data, verbose=False)
    assert metrics["test_acc"] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("length", [10, 20])
def test_the_exact_gradient_sees_along_whole_chains(folder: Path, length: int) -> None:
    """By `chains_implicit` in 400 of its 2,000 epochs; two graph convolutions are right on 69 and 58 % of the nodes."""
    main(
        [
            *("fit", "--config", "chains_implicit", *QUIET, "--data.length", str(length), "--name", "chains"),
            *("--trainer.max_epochs", "400", "--trainer.check_val_every_n_epoch", "5"),
        ]
    )
    task = NodeClassification.load_from_checkpoint("checkpoints/chains/best.ckpt")
    (metrics,) = trainer(folder).test(task, Chains(length), verbose=False)
    assert metrics["test_acc"] >= 0.95


def test_the_monitor_estimates_on_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch)
    task = GraphClassification(small(IGNNGraphClassifier, in_features=3, width=4))
    monitor = EquilibriumMonitor(estimate_every=1, estimate_in_evaluation=True)
    metrics = fitted(folder, task, TUGraphs(str(folder), folds=4), callbacks=[monitor])
    assert 0 <= metrics["val_spectral_radius"] < 1
    assert 0 < metrics["val_gradient_cosine"] <= 1 + 1e-6
    test = trainer(folder, callbacks=[EquilibriumMonitor(estimate_in_evaluation=True)])  # in inference mode
    (metrics,) = test.test(task, datamodule=TUGraphs(str(folder), folds=4), verbose=False)
    assert 0 <= metrics["test_spectral_radius"] < 1


@pytest.mark.parametrize(
    ("net", "data", "message"),
    [
        (
            IGNNNodeClassifier(in_features=33, num_classes=4),
            KarateClub(),
            "`in_features` of the network must be 34 for `KarateClub`, got 33.",
        ),
        (
            IGNNNodeClassifier(in_features=34, num_classes=2),
            KarateClub(),
            "`num_classes` of the network must be 4 or more for `KarateClub`, got 2.",
        ),
    ],
)
def test_a_network_for_other_data_is_refused(net: Network, data: KarateClub, message: str, folder: Path) -> None:
    with pytest.raises(CombinationError) as error:
        fitted(folder, NodeClassification(net), data)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            GraphClassification(small(IGNNGraphClassifier, in_features=34)),
            "`GraphClassification` takes graphs with a class each, and `KarateClub` has graphs with a class for each",
        ),
        (
            NodeClassification(small(IGNNNodeClassifier, in_features=34, num_classes=4), multilabel=True),
            "`NodeClassification` takes graphs with several labels for each node, and `KarateClub` has",
        ),
        (
            NodeClassification(small(IGNNGraphClassifier, in_features=34, num_classes=4)),
            "`IGNNGraphClassifier` must predict one class for each node, 34 in a batch of 1 graphs with 34 nodes, got "
            "1. Choose another network, such as `net=IGNNNodeClassifier`.",
        ),
    ],
)
def test_a_task_for_other_data_is_refused(task: pl.LightningModule, message: str, folder: Path) -> None:
    with pytest.raises(CombinationError, match=message):
        fitted(folder, task, KarateClub())


def test_adjacency_as_it_is_needs_its_perron_eigenvalue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ppi(folder, monkeypatch, features=6, labels=5)
    sizes = {"in_features": 6, "num_classes": 5, "widths": [8]}
    data = PPI(str(folder / "PPI"), normalization="none")
    with pytest.raises(CombinationError, match=r"`perron` of the network must be 2\S* or more for `PPI`, got 1\.0"):
        fitted(folder, NodeClassification(small(IGNNSkipNodeClassifier, **sizes), multilabel=True), data)
    net = small(IGNNSkipNodeClassifier, **sizes, perron=3.0)
    assert math.isfinite(fitted(folder, NodeClassification(net, multilabel=True), data)["val_loss"])


class Unnormalised(GraphDataModule):
    """Rings whose test graph alone has no edge weights, under a description that says otherwise."""

    def setup(self, stage: str | None = None) -> None:
        pairs = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
        rings = [Data(x=torch.ones(3, 2), edge_index=pairs, y=torch.tensor([0, 1, 0])) for _ in range(3)]
        for ring in rings[:2]:
            ring.edge_weight = torch.full((6,), 0.5)
        self.train_set, self.val_set, self.test_set = ([ring] for ring in rings)
        self.describe(NODES, rings[0], classes=2, perron=1.0)


def test_a_graph_that_is_not_normalised_is_refused_wherever_it_comes(folder: Path) -> None:
    task = NodeClassification(small(IGNNNodeClassifier, in_features=2))
    assert math.isfinite(fitted(folder, task, Unnormalised())["val_loss"])
    with pytest.raises(CombinationError, match=r"must be at most 1, the `perron` .*, got a graph with 2\. Normalise"):
        trainer(folder).test(task, datamodule=Unnormalised(), verbose=False)
    task = NodeClassification(small(IGNNNodeClassifier, in_features=2, perron=2.0))
    (metrics,) = trainer(folder).test(task, datamodule=Unnormalised(), verbose=False)
    assert math.isfinite(metrics["test_loss"])


def test_the_command_line_says_what_to_type_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tu(folder, monkeypatch)
    monkeypatch.setattr("deq_lightning.data.graphs.tu.normalised", lambda graphs, weight=1.0: graphs)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *TINY_TU, "--trainer.max_epochs", "1"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and "Traceback" not in error
    assert "must be at most 1, the `perron` of the network, got a graph with 1.732051. Normalise" in error
    assert "or type `--model.net.perron 1.7321`" in error


def test_the_published_double_edges_are_normalised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch)
    task = GraphClassification(small(IGNNGraphClassifier, in_features=3, width=4))
    data = TUGraphs(str(folder), folds=4, double_test_edges=True)
    (metrics,) = trainer(folder).test(task, datamodule=data, verbose=False)
    assert metrics["test_solver_residual"] <= 1e-5


def test_a_run_that_diverges_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tu(folder, monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *TINY_TU, "--model.optimizer.lr", "1e30", "--guard.patience", "2"])
    error = capsys.readouterr().err
    assert exit_.value.code == 1 and "Traceback" not in error and "the solver diverged on most samples" in error


def test_the_rate_falls_at_parts_of_the_run(folder: Path) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = StepsToEnd(optimizer, parts=[0.25, 0.5], gamma=0.5)
    schedule.end_at(8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match=r"`parts` must be in \(0, 1\), got \[1.0\]"):
        StepsToEnd(optimizer, parts=[1.0])


# --- from the command line ---


TINY_TU = [
    *("--config", "proteins_upg", *QUIET, "--data.folds", "4", "--data.root", ".", "--data.batch_size", "5"),
    *("--model.net.width", "4", "--trainer.max_epochs", "2", "--monitor.estimate_every", "0"),
]


def last(run: str) -> dict:
    return torch.load(Path("checkpoints") / run / "last.ckpt", weights_only=True)


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch)
    fit = ["fit", *TINY_TU, "--test_after_fit", "false"]
    main([*fit, "--name", "whole"])
    halfway = ["--name", "parts", "--trainer.max_epochs", "1", "--model.lr_scheduler.parts", "[0.5]"]
    main([*fit, *halfway])
    torch.manual_seed(7)
    main([*fit, "--ckpt_path", "checkpoints/parts/last.ckpt"])
    whole, parts = last("whole"), last("parts")
    assert whole["global_step"] == parts["global_step"] == 8
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, parts["state_dict"][name])


def test_predictions_are_a_row_per_graph_or_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(folder, monkeypatch)
    main(["fit", *TINY_TU, "--trainer.max_epochs", "1"])
    main(["predict", "--ckpt_path", "checkpoints/proteins_upg/best.ckpt"])
    rows = list(csv.DictReader(Path("checkpoints/proteins_upg/predictions.csv").open()))
    assert len(rows) == 6 and {"prediction", "label", "solver_steps", "solver_residual"} < rows[0].keys()
    task = GraphClassification.load_from_checkpoint("checkpoints/proteins_upg/best.ckpt")
    assert task.net.in_features == 3


def test_bad_data_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in {
        ("fit", "--config", "cox2_upg"): "error: `COX2` was not found under `data/`",
        ("fit", "--config", "ppi_upg"): "error: `PPI` was not found under `data/PPI/`",
        (
            "fit",
            "--config",
            "karate_upg",
            "--model.net.num_classes",
            "3",
        ): "error: `num_classes` of the network must be 4",
        ("fit", "--config", "cox2_upg", "--data.fold", "10"): "`fold` must be in [0, 9], got 10.",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main(list(arguments))
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and message in error and "Traceback" not in error
