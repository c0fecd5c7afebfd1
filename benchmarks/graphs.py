"""Implicit graph networks: how far they see along chains, what their training steps cost, and PPI at its real sizes.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/graphs.py [--root ROOT]

`chains`: test accuracy on the chains of `chains_implicit` by their length, with the gradients and with a graph
convolutional network of two layers of the same width from PyTorch Geometric, which has no equilibrium. `steps`: the
training steps of `cox2_upg` and `proteins_upg` with each gradient on the real graphs (`--root ROOT`), after
`--warm` steps with that gradient. `ppi`: training steps of `ppi_upg` and `ppi_implicit` on random graphs that grow by
preferential attachment, in the real files' layout with the real numbers of nodes, edges, features and labels.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from figures import grid, options_for, save
from matplotlib.figure import Figure
from measure import interleaved, peak_bytes, ratio, versions
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch_geometric.nn.models import GCN as GraphConvolutions
from torch_geometric.utils import barabasi_albert_graph

from deq_lightning import JFB, UPG, Chains, FixedPointIteration, IGNNNodeClassifier, Implicit, Network
from deq_lightning.cli import main as command_line
from deq_lightning.gradients import GradientStrategy
from deq_lightning.models import Equilibrium
from deq_lightning.solvers import Solver
from deq_lightning.tasks import NodeClassification

GRADIENTS: dict[str, Callable[[Solver], GradientStrategy]] = {
    "Implicit": lambda budget: Implicit(adjoint_solver=budget),
    "UPG(5)": lambda budget: UPG(k=5, damping=0.5),
    "JFB": lambda budget: JFB(),
}
CONVOLUTIONS = "GCN, 2 layers"
ADJOINT = [  # of `cox2_implicit`
    "--gradient.adjoint_solver=FixedPointIteration",
    "--gradient.adjoint_solver.max_steps=300",
    "--gradient.adjoint_solver.rtol=1e-5",
]
FLAGS = {
    "Implicit": ["--gradient", "Implicit", *ADJOINT],
    "UPG(5), λ = 0.5": [],
    "UPG(5), λ = 0.8": ["--gradient.damping", "0.8"],
    "UPG(5), λ = 1": ["--gradient.damping", "1"],
    "JFB": ["--gradient", "JFB"],
}
PPI_NODES = {
    "train": "1767 1377 2263 2339 1578 1021 1823 2488 591 3312 2401 1878 1819 3480 2794 2326 2650 2815 3163 3021",
    "valid": "3230 3284",
    "test": "3224 2300",
}
PPI_LINKS = 14  # that a node comes with: 28 neighbours in the mean, as in the real graphs


class GCN(Network):
    """Graph convolutions without an equilibrium.

    Args:
        in_features: features of a node.
        num_classes: classes to predict.
        width: of the hidden layer.
    """

    def __init__(self, in_features: int = 100, num_classes: int = 2, width: int = 16) -> None:
        super().__init__()
        # The weights of the edges are normalised already, as for the equilibrium.
        self.layers = GraphConvolutions(in_features, width, 2, num_classes, dropout=0.5, normalize=False)

    def forward(self, x: Any) -> tuple[Tensor, list[Equilibrium]]:
        """Return the logits of the nodes."""
        return self.layers(x.x, x.edge_index, edge_weight=x.edge_weight), []


def chain_accuracy(method: str, length: int, epochs: int, seed: int) -> float:
    """Train on chains, and return the test accuracy at the epoch that validation selects."""
    pl.seed_everything(seed, verbose=False)
    # That of the configs, and two and a half times the length: after one time the far nodes are still 0, and with
    # weights of 0.45 on a node and on what comes from before it the equilibrium takes nearly twice the length.
    budget = FixedPointIteration(max_steps=max(100, 5 * length // 2), rtol=0)
    net = GCN() if method == CONVOLUTIONS else IGNNNodeClassifier(solver=budget)
    task = NodeClassification(net, optimizer=partial(torch.optim.Adam, lr=0.01, weight_decay=5e-4))
    callbacks: list[pl.Callback] = [] if method == CONVOLUTIONS else [GRADIENTS[method](budget)]
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_acc", mode="max")
        trainer = pl.Trainer(
            max_epochs=epochs,
            gradient_clip_val=0.5,
            check_val_every_n_epoch=5,
            callbacks=[*callbacks, best],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = Chains(length)
        trainer.fit(task, data)
        return trainer.test(task, data, ckpt_path=best.best_model_path, verbose=False)[0]["test_acc"]


def chains(lengths: Sequence[int], epochs: int, seeds: int) -> dict[str, dict[int, list[float]]]:
    """Return the test accuracies by method, length and seed."""
    results: dict[str, dict[int, list[float]]] = {}
    for method in (*GRADIENTS, CONVOLUTIONS):
        results[method] = {}
        for length in lengths:
            found = [chain_accuracy(method, length, epochs, seed) for seed in range(seeds)]
            results[method][length] = found
            print(f"| {method} | {length} | {fmean(found):.3f} ± {pstdev(found):.3f} | {min(found):.3f} |", flush=True)
    return results


def draw(accuracies: dict[str, dict[int, list[float]]]) -> Figure:
    """Draw the accuracy over the length, with the range over the seeds."""
    figure, axes = grid(1, 1, width=5.0, height=3.4)
    panel = axes[0, 0]
    for method, by_length in accuracies.items():
        rows = {int(length): found for length, found in by_length.items()}
        panel.plot(list(rows), [fmean(found) for found in rows.values()], ".-", label=method)
        panel.fill_between(list(rows), *zip(*[(min(f), max(f)) for f in rows.values()], strict=True), alpha=0.15)
    panel.set_xlabel("nodes of a chain, of which the first shows the class")
    panel.set_ylabel("test accuracy")
    panel.legend()
    return figure


def train(task: Any, optimizer: torch.optim.Optimizer, batch: Any) -> list[Equilibrium]:
    """Make one training step."""
    optimizer.zero_grad()
    loss, equilibria = task.loss(batch)
    loss.backward()
    optimizer.step()
    task.net.project(equilibria)
    return equilibria


def steps(config: str, flags: dict[str, list[str]], root: str, warm: int, rounds: int) -> dict[str, dict[str, float]]:
    """Count and time a config's training step with each gradient."""
    actions: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, typed in flags.items():
        cli = command_line(["--config", config, "--data.root", root, *typed], run=False)
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        task, strategy, loader = cli.model, cli.config_init.gradient, cli.datamodule.train_dataloader()
        for layer in task.net.implicit_layers():
            layer.gradient = strategy
        optimizer = task.make_optimizer(task.parameters())
        for batch in islice(cycle(loader), warm + 1):
            equilibria = train(task, optimizer, batch)
        evaluations = sum(one.solution.evaluations for one in equilibria if one.solution)
        actions[name] = partial(train, task, optimizer, batch)
        rows[name] = {"evaluations of a step": evaluations, "peak MB": peak_bytes(actions[name]) / 1e6}
        rows[name]["products of a step"] = sum(one.evaluations for one in getattr(strategy, "adjoint_solutions", []))
        rows[name]["steps an epoch"] = len(loader)
    times = interleaved(actions, rounds)
    for name, row in rows.items():
        row["ms a step"] = 1e3 * median(times[name])
        row["over the first"] = ratio(times, name, next(iter(flags)))
        print(f"| {config} | {name} | " + " | ".join(f"{key} {value:.2f}" for key, value in row.items()) + " |")
    return rows


def write_ppi(root: Path) -> None:
    """Write random graphs as the files of PPI, with as many nodes, edges, features and labels."""
    (root / "raw").mkdir(parents=True)
    for split, text in PPI_NODES.items():
        sizes = [int(size) for size in text.split()]
        starts = np.cumsum([0, *sizes])
        edges = [barabasi_albert_graph(n, PPI_LINKS) + start for n, start in zip(sizes, starts, strict=False)]
        pairs = torch.cat(edges, dim=1).T.tolist()
        links = [{"source": source, "target": target} for source, target in pairs]
        nodes = [{"id": number} for number in range(sum(sizes))]
        content = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
        (root / "raw" / f"{split}_graph.json").write_text(json.dumps(content))
        draws = np.random.default_rng(len(sizes))
        arrays = {
            "graph_id": np.repeat(np.arange(1, len(sizes) + 1), sizes),
            "feats": draws.normal(size=(sum(sizes), 50)),
            "labels": (draws.random((sum(sizes), 121)) < 0.3).astype(int),
        }
        for name, array in arrays.items():
            np.save(root / "raw" / f"{split}_{name}.npy", array)


def ppi(warm: int, rounds: int) -> dict[str, dict[str, float]]:
    """Count and time training steps at PPI's sizes."""
    pl.seed_everything(0, verbose=False)  # the graphs are drawn by PyTorch and NumPy
    with tempfile.TemporaryDirectory() as folder:
        write_ppi(Path(folder))
        flags = {name: FLAGS[name] for name in ("Implicit", "UPG(5), λ = 0.5")}
        return steps("ppi_upg", flags, folder, warm, rounds)


def main() -> None:
    """Print the tables and write the JSON and the figure."""
    parser = options_for("graphs", __doc__)
    parser.add_argument("--root", default=None, help="Root of the real COX2 and PROTEINS. None: without their table.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("chains", "steps", "ppi"), default=None)
    options = parser.parse_args()
    print(f"{versions()}")
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    if options.only in (None, "chains"):
        results["chains"] = chains(options.lengths, options.epochs, options.seeds)
    if options.root and options.only in (None, "steps"):
        results["steps"] = {
            name: steps(f"{name}_upg", FLAGS, options.root, options.warm, options.rounds)
            for name in ("cox2", "proteins")
        }
    if options.only in (None, "ppi"):
        results["ppi"] = ppi(options.warm, options.rounds)
    save(options, {"versions": versions()} | results, draw(results.get("chains", {})))


if __name__ == "__main__":
    main()
