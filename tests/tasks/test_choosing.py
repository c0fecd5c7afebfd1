"""Models that choose how much to compute: what is charged, schedules of a run, figures of each sample."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from support.runs import assert_equal, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import (
    MDEQ,
    MIND,
    UPG,
    AdaptiveClassification,
    Digits,
    EquilibriumMonitor,
    FixedPointIteration,
    JacobianPenalty,
    PredictionWriter,
)
from deq_lightning.configured import CombinationError


def task(variant: str = "learned", **options: object) -> AdaptiveClassification:
    torch.manual_seed(0)
    solver = FixedPointIteration(6, rtol=0.2, check_every=1)
    sizes = {"widths": (4, 8), "image_size": 8, "head": "average", "introspection_widths": (4,)}
    net = MIND(1, 10, variant=variant, solver=solver, **sizes)
    for layer in net.layers:
        layer.gradient = UPG(k=2)
    return AdaptiveClassification(net, **options)


def digits(count: int = 12) -> tuple[Tensor, Tensor]:
    data = Digits()
    data.setup()
    return data.test_set[:count]


def loader(count: int = 12) -> DataLoader:
    return DataLoader(TensorDataset(*digits(count)), 4)


def test_the_loss_is_that_of_the_formula() -> None:
    one = task(cost_weight=0.7, iterations_weight=0.3, share_weight=0.5, layers_weight=0.1).train()
    x, y = digits()
    torch.manual_seed(1)
    loss, equilibria = one.loss((x, y))
    torch.manual_seed(1)
    logits, _, m = one.net.think(x)
    assert 0 < m.sum() < m.numel()
    k = torch.stack([solved.solution.steps for solved in equilibria], 1)
    assert 1 < len(k.unique())
    w = torch.tensor([64 * 4**2, 16 * 8**2]) / (64 * 4**2 + 16 * 8**2)  # of convolutions of equal kernels
    charged = 0.3 * (m * k / 6 * w).sum(1) + 0.5 * (w * m).sum(1) + 0.1 * m.sum(1)
    assert loss.item() == pytest.approx((F.cross_entropy(logits, y) + 0.7 * charged.mean()).item(), rel=1e-6)


def test_what_is_charged_teaches_the_introspection_network_alone() -> None:
    one = task(cost_weight=1.0).train()
    x, y = digits()
    _, equilibria = one.loss((x, y))
    cost = one.cost(equilibria, one.net.flops(8, 8))
    grads = torch.autograd.grad(cost, list(one.net.parameters()), allow_unused=True)
    for (name, _), g in zip(one.net.named_parameters(), grads, strict=True):
        assert (g is not None and bool(g.any())) == name.startswith("introspection."), name


@pytest.mark.parametrize("variant", ["none", "all", "uniform", "fixed"])
def test_variants_that_do_not_choose_train_as_well(variant: str) -> None:
    one = task(variant) if variant != "fixed" else None
    if one is None:
        net = MIND(1, 10, 8, (4, 8), head="average", variant="fixed", thresholds=(0.0, 0.4))
        one = AdaptiveClassification(net)
    loss, equilibria = one.train().loss(digits())
    loss.backward()
    assert len(equilibria) == {"none": 0, "uniform": 1}.get(variant, 2)
    assert all(parameter.grad is not None for parameter in one.net.parameters())


def test_the_temperature_falls_along_a_line(folder: Path) -> None:
    class Seen(pl.Callback):
        values: ClassVar[list[float]] = []

        def on_train_batch_end(self, trainer: pl.Trainer, task: AdaptiveClassification, *_: object) -> None:
            self.values.append(task.net.temperature)

    seen = Seen()
    one = task(choice_temperature=2.0, final_choice_temperature=1.0)
    trainer(folder, seen, max_steps=5, enable_checkpointing=False).fit(one, loader(20))
    assert seen.values == pytest.approx([2.0, 1.8, 1.6, 1.4, 1.2])


def test_in_a_warm_up_one_network_rests_after_the_other(folder: Path) -> None:
    one = task(warmup_epochs=1, optimizer=lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.1))
    kept: list[dict[str, Tensor]] = []

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
            kept.append({name: value.detach().clone() for name, value in task.net.named_parameters()})

    kept.append({name: value.detach().clone() for name, value in one.net.named_parameters()})
    trainer(folder, Keep(), max_steps=-1, max_epochs=3, enable_checkpointing=False).fit(one, loader())
    for epoch, (before, after) in enumerate(pairwise(kept)):
        for name in before:
            moved = not torch.equal(before[name], after[name])
            assert moved == (epoch == 2 or name.startswith("introspection.") == (epoch == 1)), (epoch, name)


def test_figures_of_each_sample_are_logged_and_tabulated(folder: Path) -> None:
    one, writer = task(), PredictionWriter("table.csv")
    with torch.no_grad():
        one.net.introspection[-1].bias.copy_(torch.tensor([5.0, -5.0]))  # the first layer alone
        one.net.introspection[-1].weight.zero_()
    run = trainer(folder, writer)
    (figures,) = run.test(one, loader(), verbose=False)
    run.predict(one, loader(), return_predictions=False)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    once, (step, _) = one.net.flops(8, 8)
    for row in rows:
        assert float(row["layers"]) == 1.0
        assert float(row["mflops"]) == pytest.approx((once + (int(row["solver_steps"]) + 2) * step) / 1e6, rel=1e-5)
    assert figures["test_layers"] == 1.0
    assert figures["test_mflops"] == pytest.approx(sum(float(row["mflops"]) for row in rows) / 12, rel=1e-5)


def test_equilibria_of_a_part_of_the_samples_are_estimated(folder: Path) -> None:
    one, x = task(), loader(4)
    torch.nn.init.zeros_(one.net.introspection[-1].weight)
    with torch.no_grad():
        one.net.introspection[-1].bias.copy_(torch.tensor([5.0, -5.0]))
    monitor = EquilibriumMonitor(estimate_in_evaluation=True, samples=3)
    (figures,) = trainer(folder, monitor, inference_mode=False).test(one, x, verbose=False)
    assert 0 < figures["test_spectral_radius"] < 10 and figures["test_gradient_cosine"] > 0
    assert figures["test_path_independence"] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("bias", [-5.0, 5.0])
@pytest.mark.parametrize("count", [1, 5])
def test_all_samples_off_and_all_on(folder: Path, bias: float, count: int) -> None:
    one = task(penalty=JacobianPenalty())
    torch.nn.init.constant_(one.net.introspection[-1].bias, bias)
    torch.nn.init.zeros_(one.net.introspection[-1].weight)
    (figures,) = trainer(folder).test(one, DataLoader(TensorDataset(*digits(count)), 5), verbose=False)
    assert figures["test_layers"] == (0 if bias < 0 else 2)
    assert (figures["test_solver_steps"] > 0) == (bias > 0)
    one.train()
    loss = one.loss(digits(max(count, 2)))
    assert torch.isfinite(loss[0]) and torch.isfinite(one.penalty(loss[1], 0))


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    """The Gumbel noise, the temperature and the warm-up go on where they were."""

    def fit(name: str, start: str | None) -> dict[str, object]:
        one = task(warmup_epochs=1, optimizer=lambda parameters: torch.optim.AdamW(parameters, 1e-2))
        torch.manual_seed(5)
        kept = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=3, save_top_k=-1)
        run = trainer(folder, kept, max_steps=9, limit_train_batches=3, limit_val_batches=0)
        run.fit(one, datamodule=Digits(batch_size=8), ckpt_path=start, weights_only=True)
        return torch.load(folder / name / "step=9.ckpt", weights_only=True)

    whole = fit("whole", None)
    resumed = fit("resumed", str(folder / "whole" / "step=3.ckpt"))
    for key in ("state_dict", "optimizer_states", "rng_state"):
        assert_equal(whole[key], resumed[key])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice_temperature": 0.0}, "`choice_temperature` must be above 0"),
        ({"final_choice_temperature": -1.0}, "`final_choice_temperature` must be above 0"),
        ({"cost_weight": -0.1}, "`cost_weight` must be 0 or more"),
        ({"layers_weight": -0.1}, "`layers_weight` must be 0 or more"),
        ({"warmup_epochs": -1}, "`warmup_epochs` must be 0 or more"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_a_model_that_does_not_choose_is_refused() -> None:
    with pytest.raises(CombinationError, match="needs a model that chooses, such as `MIND`, got `MDEQ`"):
        AdaptiveClassification(MDEQ())
