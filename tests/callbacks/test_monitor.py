"""What the monitor logs is true, and it changes nothing."""

import copy
import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support.marks import slow
from support.runs import digits_task as task
from support.runs import trainer, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deq_lightning import (
    JFB,
    MDEQ,
    UPG,
    Digits,
    EquilibriumMonitor,
    Implicit,
    Status,
    Unrolled,
    gradient_audit,
    spectral_radius,
)
from deq_lightning.callbacks.record import KEPT, Record

ESTIMATES = {"spectral_radius", "gradient_cosine", "gradient_norm_ratio", "audit_residual"}


@pytest.mark.parametrize("strategy", [UPG(), slow(Implicit()), slow(Unrolled(unroll_steps=2))])
def test_a_watched_run_is_the_same_run(folder: Path, strategy: pl.Callback) -> None:
    """Weights, BatchNorm's statistics and the random state, bit for bit, with every estimate switched on."""
    ends = []
    for callbacks in ([], [EquilibriumMonitor(estimate_every=1, estimate_in_evaluation=True)]):
        pl.seed_everything(0)
        one = task()
        trainer(folder, copy.deepcopy(strategy), *callbacks).fit(one, Digits(batch_size=32))
        ends.append([*weights(one), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_logged_of_every_batch(folder: Path) -> None:
    one, monitor = task(), EquilibriumMonitor()
    seen = []
    one.net.register_forward_hook(lambda net, x, output: seen.append(output[1][0].solution))
    fit = trainer(folder, JFB(), monitor, max_steps=1, limit_val_batches=0)
    fit.fit(one, Digits(batch_size=32))
    (solution,) = seen
    assert fit.callback_metrics["solver_steps_max"] == solution.steps.max()
    assert fit.callback_metrics["solver_converged"] == (solution.status == Status.converged).float().mean()
    assert not ESTIMATES & set(fit.callback_metrics) and "adjoint_residual" not in fit.callback_metrics


def test_the_adjoint_solves_are_logged(folder: Path) -> None:
    strategy = Implicit()
    fit = trainer(folder, strategy, EquilibriumMonitor(), max_steps=1, limit_val_batches=0)
    fit.fit(task(), Digits(batch_size=32))
    (report,) = strategy.adjoint_solutions
    assert fit.callback_metrics["adjoint_residual"] == report.residual.mean()
    assert fit.callback_metrics["adjoint_steps"] == report.steps.float().mean()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_under_inference_mode_and_over_the_whole_split(folder: Path, stage: str) -> None:
    one, monitor = task(), EquilibriumMonitor(estimate_in_evaluation=True, samples=4)
    seen, modes, data = [], [], Digits(batch_size=64)

    def listen(net: MDEQ, x: tuple[torch.Tensor, ...], output: tuple) -> None:
        modes.append(torch.is_inference_mode_enabled())
        if modes[-1]:
            seen.append(output[1][0].solution)

    one.net.register_forward_hook(listen)
    run = trainer(folder, UPG(k=3), monitor, limit_val_batches=1.0)
    getattr(run, stage)(one, data, verbose=False)
    prefix = {"validate": "val_", "test": "test_"}[stage]
    metrics = run.callback_metrics
    steps, status = (torch.cat([getattr(solution, name) for solution in seen]) for name in ("steps", "status"))
    assert len(steps) > 256 and modes.count(False) == 1
    assert metrics[f"{prefix}solver_steps_max"] == steps.max()
    torch.testing.assert_close(metrics[f"{prefix}solver_converged"], (status == Status.converged).float().mean())

    loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    x, y = next(iter(loader))
    loss, ((f, z, solution),) = one.eval().loss((x[:4], y[:4]))
    g = torch.autograd.grad(loss, z, retain_graph=True)
    audit = gradient_audit(UPG(k=3), f, solution.z, g, one.net.parameters())
    radius = spectral_radius(f, solution.z).mean()
    close = {"rtol": 1e-3, "atol": 1e-3, "check_dtype": False}
    torch.testing.assert_close(metrics[f"{prefix}spectral_radius"], radius, **close)
    torch.testing.assert_close(metrics[f"{prefix}gradient_cosine"], audit.cosine, **close)
    torch.testing.assert_close(metrics[f"{prefix}gradient_norm_ratio"], audit.norm_ratio, **close)


def test_estimates_come_when_they_are_due(folder: Path) -> None:
    logger = CSVLogger(folder)
    monitor = EquilibriumMonitor(estimate_every=2)
    trainer(folder, UPG(), monitor, logger=logger, max_steps=5, limit_val_batches=0).fit(task(), Digits(batch_size=32))
    with Path(logger.experiment.metrics_file_path).open() as file:
        rows = [row for row in csv.DictReader(file) if row["spectral_radius"] != ""]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(math.isfinite(float(row[name])) for row in rows for name in ESTIMATES)


@pytest.mark.parametrize(("total", "every"), [(12, 10), (285, 28), (18_000, 1000), (float("inf"), 1000)])
def test_a_run_gets_ten_estimates(total: float, every: int) -> None:
    monitor = EquilibriumMonitor()
    monitor.on_train_start(SimpleNamespace(estimated_stepping_batches=total), None)
    assert monitor._every == every
    monitor = EquilibriumMonitor(estimate_every=7)
    monitor.on_train_start(SimpleNamespace(estimated_stepping_batches=total), None)
    assert monitor._every == 7


def test_steps_are_drawn_where_the_logger_can(folder: Path) -> None:
    logger = TensorBoardLogger(folder)
    monitor = EquilibriumMonitor(estimate_every=1)
    fit = trainer(folder, UPG(), monitor, logger=logger, max_epochs=1, limit_train_batches=1)
    fit.fit(task(), Digits(batch_size=32))
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"solver_steps", "val_solver_steps"} <= set(events.Tags()["histograms"])
    assert events.Histograms("val_solver_steps")[0].histogram_value.num == 64


def test_nothing_is_estimated_where_nothing_is_solved(folder: Path) -> None:
    fit = trainer(folder, UPG(pretrain_steps=100), EquilibriumMonitor(estimate_every=1))
    fit.fit(task(), Digits(batch_size=32))
    assert "train_loss" in fit.callback_metrics and not ESTIMATES & set(fit.callback_metrics)


@pytest.mark.parametrize("arguments", [{"estimate_every": -1}, {"samples": 0}])
def test_bad_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        EquilibriumMonitor(**arguments)


def test_residuals_along_a_solve_are_kept_and_go_through_a_checkpoint(folder: Path) -> None:
    one, monitor = task(), EquilibriumMonitor(estimate_every=2)
    trainer(folder, UPG(), monitor, max_steps=4, limit_val_batches=0).fit(one, Digits(batch_size=32))
    curves = monitor.record.curves
    assert [(curve["step"], curve["layer"]) for curve in curves] == [(2, 0), (4, 0)]
    budget = one.net.solver.budget
    for curve in curves:
        low, middle, high = zip(*curve["residuals"], strict=True)
        assert len(low) == budget and all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))
        assert low[0] == high[0] == 1 > high[-1] > 0  # from the origin
    other = EquilibriumMonitor()
    other.load_state_dict(monitor.state_dict())
    assert other.record.curves == curves


def test_every_second_of_too_many_curves_goes() -> None:
    record = Record()
    one = task().eval()
    x = next(iter(_loader()))[0][:4]
    equilibria = one.net(x)[1]
    for step in range(KEPT + 1):
        record.add_curves(equilibria, [one.net], step, 1)
    assert [curve["step"] for curve in record.curves] == list(range(0, KEPT + 1, 2))


def test_steps_are_counted_by_whether_the_equilibrium_was_found(folder: Path) -> None:
    monitor, one = EquilibriumMonitor(), task()
    seen = []
    one.net.register_forward_hook(lambda net, x, output: seen.append(output[1][0].solution))
    trainer(folder, UPG(), monitor).test(one, Digits(batch_size=64), verbose=False)
    counts = monitor.record.steps["test"]
    steps, status = (torch.cat([getattr(solution, name) for solution in seen]) for name in ("steps", "status"))
    assert sum(counts["found"].values()) == (status == Status.converged).sum()
    assert sum(sum(part.values()) for part in counts.values()) == len(steps)
    assert sum(step * count for part in counts.values() for step, count in part.items()) == steps.sum()


def _loader() -> torch.utils.data.DataLoader:
    data = Digits(batch_size=64)
    data.setup("test")
    return data.test_dataloader()
