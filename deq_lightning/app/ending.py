"""The end of a run in words."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from deq_lightning.app.found import command_for
from deq_lightning.app.results import Results
from deq_lightning.app.runs import from_here, say
from deq_lightning.configured import RunError
from deq_lightning.models import ImplicitModel

NAMES = {"acc": "accuracy", "ppl": "perplexity", "miou": "mean IoU", "f1": "F1", "r2": "R2"}
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


def check_trained(trainer: pl.Trainer, step: int, continued: bool) -> None:
    """Say so if nothing was trained.

    Args:
        trainer: has run.
        step: the one that the run began with.
        continued: whether a checkpoint was continued.

    Raises:
        RunError: if a new run has taken no step.
    """
    if trainer.fast_dev_run or trainer.global_step > step:  # type: ignore[attr-defined]
        return
    if not continued:
        raise RunError(
            "no training step was taken: nothing was trained. Look at `trainer.max_epochs`, `trainer.max_steps`, "
            "`trainer.max_time` and `trainer.limit_train_batches`."
        )
    say(f"nothing was left to train after epoch {trainer.current_epoch}: type more `--trainer.max_epochs`")


def report_fit(
    best: ModelCheckpoint, last: ModelCheckpoint, test: Callable[[str], None] | None, trainer: pl.Trainer
) -> None:
    """Write the results of a fit, and say where its best checkpoint and curves are, and what to type next.

    Args:
        best: wrote the best checkpoint.
        last: wrote the last one.
        test: tests a checkpoint. None: none is tested.
        trainer: of the run.
    """
    written, following = best.best_model_path or last.best_model_path, "fit"
    if best.best_model_path:
        score = "" if best.best_model_score is None else f" ({best.monitor} {best.best_model_score:.4g})"
        say(f"best checkpoint: {from_here(written)}{score}", flush=True)
        following = "test" if test is None else "predict"
        if test is not None:
            test(written)
    elif written:
        say(f"last checkpoint: {from_here(written)}")  # stopped before the first validation
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, Results) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            one.write(trainer, best)
    for folder in curves(trainer):
        say(f"curves: tensorboard --logdir {folder}")
    if written:
        say(f"next: {command_for(following, written)}")


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
