"""MDEQ's cell beside its bare layers, its training step beside published ones, and the MNIST networks' steps.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/vision.py [--mnist ROOT]

`cell`: one evaluation without gradients at the published shapes, beside the same convolutions, norms and sums called
one after the other on the same tensors. `formats`: whole training steps with channels last and with a compiled cell.
`step`: training steps of MDEQ-Tiny with the published budgets, batch 8, in units of one bare evaluation. `mnist`: a
training step of the config `mnist_jfb` with each gradient, on a batch of the real images (`--mnist ROOT`), after
`--warm` steps of training with that gradient.
"""

import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from figures import RESULTS
from measure import Counter, interleaved, peak_bytes, ratio, versions
from torch import Tensor, nn

from deq_lightning import FPN, JFB, MDEQ, UPG, Broyden, Implicit
from deq_lightning.cli import main as command_line
from deq_lightning.gradients import GradientStrategy
from deq_lightning.models.layers.frozen import WeightNormConv2d, frozen
from deq_lightning.models.mdeq.cell import Fusion, MultiscaleCell, ResidualBlock, States

REFERENCE_STEP = 1266 / 22.0  # of the published code for UPG, in evaluations of its cell without gradients
LARGE: dict[str, Any] = {"channels": (32, 64, 128, 256)}
SHAPES = {
    "Tiny, 8 x 32²": (MDEQ, {}, (8, 3, 32, 32)),
    "CIFAR-10 large, 4 x 32²": (
        MDEQ,
        {**LARGE, "head_channels": (14, 28, 56, 112), "final_channels": 1680},
        (4, 3, 32, 32),
    ),
    "ImageNet small, 2 x 224²": (
        MDEQ,
        {**LARGE, "head_channels": (24, 48, 96, 192), "final_channels": 2048, "downsample": 2, "num_classes": 1000},
        (2, 3, 224, 224),
    ),
}
GRADIENTS = {
    "JFB": [],
    "explicit (Unrolled, 1 step)": ["--gradient", "Unrolled", "--gradient.unroll_steps", "1"],
    "UPG(5)": ["--gradient", "UPG"],
    "NPG(5)": ["--gradient", "NPG"],
    "Implicit, NormalCG": ["--gradient", "Implicit", "--gradient.adjoint_solver", "NormalCG"],
    "Implicit, GMRES": ["--gradient", "Implicit", "--gradient.adjoint_solver", "GMRES"],
}

STEPS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "MDEQ-Tiny, UPG(5), 8 x 32²": (
        lambda: with_gradient(MDEQ(solver=Broyden(23, rtol=0, history=22)), UPG(k=5)),
        (8, 3, 32, 32),
    ),
    "FPN mnist, JFB, 100 x 28²": (lambda: with_gradient(FPN(), JFB()), (100, 1, 28, 28)),
}

Layer = Callable[[Tensor], Tensor]


def with_gradient(model: Any, strategy: GradientStrategy) -> Any:
    """Return the model with the strategy."""
    model.gradient = strategy
    return model


def bare(layer: nn.Module) -> Layer:
    """Return the layer as a call of torch's function on tensors at hand."""
    if isinstance(layer, nn.Sequential):
        return chain([bare(each) for each in layer])
    if isinstance(layer, nn.GroupNorm):
        return lambda x: F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    if isinstance(layer, nn.ReLU):
        return F.relu
    assert isinstance(layer, nn.Conv2d)
    weight = layer.frozen_weight if isinstance(layer, WeightNormConv2d) else layer.weight
    return lambda x: F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def chain(layers: list[Layer]) -> Layer:
    """Return the layers one after the other."""

    def call(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return call


def bare_block(block: ResidualBlock) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a residual block's functions."""
    names = ("conv1", "norm1", "conv2", "norm2", "norm3")
    conv1, norm1, conv2, norm2, norm3 = (bare(getattr(block, name)) for name in names)

    def call(z: Tensor, u: Tensor | None) -> Tensor:
        residual = conv2(F.relu(norm1(conv1(z))))
        return norm3(F.relu(norm2(residual if u is None else residual + u) + z))

    return call


def bare_fusion(fusion: Fusion) -> Callable[[list[Tensor]], Tensor]:
    """Return a fusion's functions."""
    target, paths = fusion.target, [(j, bare(path)) for j, path in zip(fusion.others, fusion.paths, strict=True)]

    def call(branches: list[Tensor]) -> Tensor:
        total = branches[target]
        for j, path in paths:
            part = path(branches[j])
            total = total + (F.interpolate(part, size=total.shape[2:]) if j > target else part)
        return total

    return call


def bare_cell(cell: MultiscaleCell) -> Callable[[States, Tensor], States]:
    """Return the same layers without any module around them."""
    blocks = [bare_block(block) for block in cell.blocks]  # type: ignore[arg-type]
    fusions = [bare_fusion(fusion) for fusion in cell.fusions]  # type: ignore[arg-type]
    posts = [bare(post) for post in cell.post]

    def call(z: States, u: Tensor) -> States:
        branches = [block(part, u if i == 0 else None) for i, (block, part) in enumerate(zip(blocks, z, strict=True))]
        return tuple(post(fusion(branches)) for post, fusion in zip(posts, fusions, strict=True))

    return call


@torch.no_grad()
def cells(rounds: int) -> dict[str, dict[str, float]]:
    """Time the cell at every published shape over its bare layers."""
    rows = {}
    for name, (kind, sizes, shape) in SHAPES.items():
        torch.manual_seed(0)
        model, x = kind(**sizes), torch.randn(shape)
        clone, u = frozen(model), model.inject(x)
        z = tuple(torch.randn_like(part) for part in model.initial_state(u))
        plain = bare_cell(clone.equilibrium_module)
        torch.testing.assert_close(plain(z, u), clone.cell(z, u))
        times = interleaved({"bare": partial(plain, z, u), "cell": partial(clone.cell, z, u)}, rounds)
        rows[name] = {"bare, ms": 1e3 * median(times["bare"]), "cell / bare": ratio(times, "cell", "bare")}
        show(name, rows[name])
    return rows


def formats(rounds: int) -> dict[str, dict[str, float]]:
    """Time whole training steps with channels last and with a compiled cell over plain ones."""
    rows = {}
    for name, (make, shape) in STEPS.items():
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        last = x.contiguous(memory_format=torch.channels_last)
        variants = {
            "plain": (make(), x),
            "channels last": (make(), last),
            "compiled": (make(), x),
            "both": (make(), last),
        }
        for variant, (model, _) in variants.items():
            if variant in ("channels last", "both"):
                model.to(memory_format=torch.channels_last)
            if variant in ("compiled", "both"):
                model.compile()
        actions = {
            variant: partial(train, model, model.gradient, images, y) for variant, (model, images) in variants.items()
        }
        times = interleaved(actions, rounds)
        rows[name] = {"plain, ms": 1e3 * median(times["plain"])}
        rows[name] |= {variant: ratio(times, variant, "plain") for variant in list(variants)[1:]}
        show(name, rows[name])
    return rows


def show(name: str, row: dict[str, float]) -> None:
    """Print a row of a table."""
    print(f"| {name} | " + " | ".join(f"{key} {value:.2f}" for key, value in row.items()) + " |", flush=True)


def train(model: nn.Module, strategy: GradientStrategy, x: Tensor, y: Tensor) -> None:
    """Make one training step but for the optimizer's."""
    model.zero_grad()
    model.gradient = strategy  # type: ignore[assignment]
    F.cross_entropy(model(x)[0], y).backward()


def steps(rounds: int) -> dict[str, dict[str, float]]:
    """Time training steps of MDEQ-Tiny with the budgets of the papers, over one bare evaluation of the cell."""
    torch.manual_seed(0)
    model, x, y = MDEQ(solver=Broyden(23, rtol=0, history=22)), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    clone, u = frozen(model), model.inject(x).detach()
    z = tuple(torch.randn_like(part) for part in model.initial_state(u))
    plain = torch.no_grad()(bare_cell(clone.equilibrium_module))
    strategies = {
        "UPG(5)": UPG(k=5),
        "Implicit, Broyden 24": Implicit(adjoint_solver=Broyden(25, rtol=0, history=24)),
        "Implicit, Broyden 20": Implicit(adjoint_solver=Broyden(21, rtol=0, history=20)),
    }
    actions: dict[str, Callable[[], Any]] = {name: partial(train, model, one, x, y) for name, one in strategies.items()}
    times = interleaved({"10 cells": lambda: [plain(z, u) for _ in range(10)], **actions}, rounds)
    rows = {}
    for name in strategies:
        rows[name] = {
            "cells": 10 * ratio(times, name, "10 cells"),
            "over UPG": ratio(times, name, "UPG(5)"),
            "ms": 1e3 * median(times[name]),
        }
        show(name, rows[name])
    share = rows["UPG(5)"]["cells"] / REFERENCE_STEP
    print(f"UPG(5) over the published code's step, both in evaluations of their cell: {share:.2f}")
    return rows | {"reference": {"cells": REFERENCE_STEP, "share": share}}


def mnist(root: str, warm: int, rounds: int) -> dict[str, dict[str, float]]:
    """Count and time a step of `mnist_jfb` with every gradient."""
    actions: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, flags in GRADIENTS.items():
        cli = command_line(["--config", "mnist_jfb", "--data.root", root, *flags], run=False)
        cli.datamodule.num_workers = 0
        cli.datamodule.setup("fit")
        task, strategy = cli.model, cli.config_init.gradient
        task.net.gradient = strategy
        optimizer = task.make_optimizer(task.parameters())
        for x, y in islice(cli.datamodule.train_dataloader(), warm + 1):
            train(task.net, strategy, x, y)
            optimizer.step()
        rows[name] = count(task.net, strategy, x, y)
        actions[name] = partial(train, task.net, strategy, x, y)
        rows[name]["peak MB"] = peak_bytes(actions[name]) / 1e6
        rows[name]["steps an epoch"] = len(cli.datamodule.train_dataloader())
    times = interleaved(actions, rounds)
    for name, row in rows.items():
        row["s an epoch"] = row["steps an epoch"] * median(times[name])
        row["over JFB"] = ratio(times, name, "JFB")
        show(name, row)
    return rows


def count(model: Any, strategy: GradientStrategy, x: Tensor, y: Tensor) -> dict[str, float]:
    """Count evaluations and Jacobian products of one step."""
    u = model.inject(x)
    counter = Counter(lambda z: frozen(model).cell(z, u))
    z, _ = strategy.fixed_point(counter, model.initial_state(u), model.solver)
    forward = counter.bare + counter.graph
    F.cross_entropy(model.readout(z), y).backward()
    solutions = strategy.adjoint_solutions if isinstance(strategy, Implicit) else []
    products = sum(solution.evaluations for solution in solutions) if solutions else counter.products
    forward_mode = counter.bare + counter.graph - forward
    return {"evaluations": forward, "VJPs": products, "JVPs": forward_mode}


def main() -> None:
    """Print the tables and write the JSON."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mnist", default=None, help="Root of the real MNIST images. None: without that table.")
    parser.add_argument("--warm", type=int, default=100)
    parser.add_argument("--only", choices=("cell", "formats", "step", "mnist"), default=None)
    options = parser.parse_args()
    print(f"{versions()}; medians of {options.rounds} rounds")
    path = RESULTS / "vision.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if options.only in (None, "cell"):
        results["cell"] = cells(options.rounds)
    if options.only in (None, "formats"):
        results["formats"] = formats(options.rounds)
    if options.only in (None, "step"):
        results["step"] = steps(options.rounds)
    if options.mnist and options.only in (None, "mnist"):
        results["mnist"] = mnist(options.mnist, options.warm, options.rounds)
    path.write_text(json.dumps({"versions": versions()} | results, indent=1))


if __name__ == "__main__":
    main()
