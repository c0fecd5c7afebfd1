"""The end of a run in words."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from deq_lightning.app.runs import from_here
from deq_lightning.models import ImplicitModel

NAMES = {"acc": "accuracy", "ppl": "perplexity", "miou": "mean IoU", "f1": "F1"}
# Figures of the method rather than of the task.
METHOD = ("loss", "solver_", "spectral_radius", "gradient_", "audit_")
FEW = 0.9  # share of equilibria below which there is something to change


def in_words(metrics: Mapping[str, Any], split: str, task: Any) -> Iterator[str]:
    """Yield what was reached on a split, and what to type where too few equilibria were found.

    Args:
        metrics: by the names they are logged under.
        split: "val" or "test", their prefix.
        task: whose networks were solved.
    """
    own = {name.removeprefix(f"{split}_"): value for name, value in metrics.items() if name.startswith(f"{split}_")}
    figures = {name: value for name, value in own.items() if not name.startswith(METHOD)}
    reached = [f"{NAMES.get(name, name)} {value:.4g}" for name, value in figures.items()]
    said = [f"{split} {', '.join(reached)}"] if reached else []
    share, models = own.get("solver_converged"), task.implicit_models()
    watched = any(model.solver.rtol > 0 or model.solver.atol > 0 for model in models)  # else none can ever be found
    if share is None or not watched:
        yield from said
        return
    percent = math.floor(1000 * share) / 10  # never 100 where one was missed
    said.append(f"equilibrium found for {percent:g} % of the samples, {own['solver_steps']:.3g} steps on average")
    yield "; ".join(said)
    if share < FEW:
        yield f"for more equilibria: {' or '.join(_ways(task, models[0]))}"


def is_of_the_method(name: str) -> bool:
    """Say whether a figure of the validation tells of the method rather than of the task; the loss does neither."""
    return name.removeprefix("val_").startswith(METHOD[1:])


def curves(trainer: pl.Trainer) -> list[str]:
    """Return the folders that TensorBoard shows."""
    return [from_here(logger.log_dir) for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _ways(task: Any, model: ImplicitModel) -> Iterator[str]:
    """Yield what to type."""
    solver = model.solver
    if "solver" in inspect.signature(type(task.net)).parameters:
        budget = "eval_max_steps" if hasattr(solver, "eval_max_steps") else "max_steps"  # of evaluation alone, if any
        yield f"`--model.net.solver.{budget} {2 * (getattr(solver, budget) or solver.max_steps)}`"
    if task.penalty is None:
        yield "train with `--model.penalty JacobianPenalty --model.penalty.weight 0.5`"
    else:
        yield f"train with `--model.penalty.weight {2 * task.penalty.weight:g}`"
