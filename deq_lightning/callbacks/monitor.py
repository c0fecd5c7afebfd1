"""Curves of how an equilibrium behaves during a run."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_map_only

from deq_lightning.callbacks.record import Record, of_samples
from deq_lightning.callbacks.reports import reports_of
from deq_lightning.configured import whole
from deq_lightning.estimators import gradient_audit, path_independence, spectral_radius
from deq_lightning.estimators.modes import differentiable, evaluating, solving
from deq_lightning.gradients import NPG, Implicit
from deq_lightning.models import Equilibrium
from deq_lightning.solvers import Status
from deq_lightning.state import parts, rebuild
from deq_lightning.tasks import ImplicitTask

ESTIMATES = 10  # of a run, if nothing else is wanted
OFTEN, SELDOM = 10, 1000  # steps between them, at least and at most


class EquilibriumMonitor(Callback):
    """Logs how the equilibrium is solved and differentiated, to whatever logger is on.

    For every batch, in addition to the means that the task logs: `solver_steps_max`, `solver_converged` (share of
    samples), with `Implicit` `adjoint_steps` and `adjoint_residual`, and with `NPG(rtol=...)` `gradient_terms`. Every
    `estimate_every` steps, on a few samples of the batch, in evaluation mode but with the solver's budget of training:
    `spectral_radius` (mean over the samples), and, comparing the strategy's gradient with the converged implicit one,
    `gradient_cosine`, `gradient_norm_ratio` and `audit_residual`; and, where a batch has several samples,
    `path_independence`: whether solves that start at each other's equilibria come back to their own. These estimates
    change nothing in the run. Loggers that take histograms (TensorBoard) get one of the solver's steps. With each
    estimate during training the residuals along a solve are kept, for the run's report.

    Args:
        estimate_every: optimizer steps between estimates, which cost as much as a few training steps. 0: never. None:
            a tenth of the run, at least 10 and at most 1,000.
        samples: samples of the batch that the estimates use, 1 or more; a batch of graphs is one state and used whole.
        estimate_in_evaluation: whether to estimate on the first batch of every validation and test as well.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, estimate_every: int | None = None, samples: int = 8, estimate_in_evaluation: bool = False
    ) -> None:
        whole(0, estimate_every=0 if estimate_every is None else estimate_every)
        whole(1, samples=samples)
        self.estimate_every = estimate_every
        self.samples = samples
        self.estimate_in_evaluation = estimate_in_evaluation
        self._every = estimate_every or 0  # of this run
        self._estimated_at = 0
        self._solved: list[tuple[Tensor, Tensor]] = []  # steps and status of the split so far
        self.record = Record()

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept of the run so far."""
        return {"curves": self.record.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was kept."""
        self.record.curves = list(state.get("curves", []))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look how long the run is."""
        del pl_module
        total = min(trainer.estimated_stepping_batches, SELDOM * ESTIMATES)  # it may be endless
        few = int(min(SELDOM, max(OFTEN, total // ESTIMATES)))
        self._every = few if self.estimate_every is None else self.estimate_every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the batch, and the estimates every `estimate_every` steps."""
        del outputs, batch_idx
        pl_module.log_dict(_solver_reports(pl_module) | _adjoint_reports(pl_module))
        step = trainer.global_step
        if self._every and step % self._every == 0 and step != self._estimated_at:
            self._estimated_at = step
            self._histogram(trainer, "solver_steps", [solution.steps for solution in reports_of(pl_module)])
            estimates = self._estimates(trainer, pl_module, batch, keep=True)
            values = {name: value.item() for name, value in estimates.items()}
            for logger in trainer.loggers if values else ():  # `log_dict` would repeat them until the next estimate
                logger.log_metrics(values, step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log a batch of the validation or test split."""
        del outputs
        solutions = reports_of(pl_module)
        prefix, size = _prefix(trainer), sum(len(solution.steps) for solution in solutions)
        postfix = pl_module.postfix(dataloader_idx) if isinstance(pl_module, ImplicitTask) else ""
        options: dict[str, Any] = {"on_epoch": True, "sync_dist": True, "add_dataloader_idx": postfix == ""}
        for name, value in _solver_reports(pl_module).items():
            over = "max" if name.endswith("_max") else "mean"
            pl_module.log(prefix + name + postfix, value, reduce_fx=over, batch_size=size, **options)
        self._solved += of_samples(solutions)
        if self.estimate_in_evaluation and batch_idx == 0:
            values = self._estimates(trainer, pl_module, batch)
            named = {prefix + name + postfix: value for name, value in values.items()}
            pl_module.log_dict(named, batch_size=self.samples, **options)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the histogram of the whole split, as far as this process saw it."""
        del pl_module
        self._histogram(trainer, f"{_prefix(trainer)}solver_steps", [steps for steps, _ in self._solved])
        if not trainer.sanity_checking:
            self.record.count_steps(_prefix(trainer).rstrip("_"), self._solved)
        self._solved = []

    on_test_epoch_end = on_validation_epoch_end

    def _estimates(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, keep: bool = False
    ) -> dict[str, Tensor]:
        if not isinstance(task, ImplicitTask):
            return {}
        with (
            differentiable(),
            evaluating(task),
            solving(task, eval_max_steps=None),
            trainer.precision_plugin.forward_context(),
        ):
            loss, equilibria = task.loss(_copy(batch, self.samples))
            rows = _estimate(task, loss, equilibria)
            if keep:
                self.record.add_curves(
                    equilibria, task.implicit_models(), trainer.global_step, trainer.current_epoch + 1
                )
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]} if rows else {}

    def _histogram(self, trainer: pl.Trainer, name: str, steps: Sequence[Tensor]) -> None:
        for logger in trainer.loggers if steps and not trainer.sanity_checking else ():
            draw = getattr(getattr(logger, "experiment", None), "add_histogram", None)
            if draw is not None:
                draw(name, torch.cat(list(steps)), trainer.global_step)


def _copy(batch: Any, samples: int) -> Any:
    """Return some samples of the batch in ordinary tensors, even if it comes from inference mode."""
    if not isinstance(batch, Tensor) and hasattr(batch, "clone"):
        return batch.clone()  # graphs
    return tree_map_only(Tensor, lambda x: x[:samples].clone(), batch)


def _prefix(trainer: pl.Trainer) -> str:
    return "test_" if trainer.testing else "val_"


def _solver_reports(task: pl.LightningModule) -> dict[str, Tensor]:
    """Return what the task does not log about this batch's solves, if there were any."""
    solutions = reports_of(task)
    if not solutions:
        return {}
    steps = torch.cat([solution.steps for solution in solutions]).float()
    status = torch.cat([solution.status for solution in solutions])
    return {"solver_steps_max": steps.max(), "solver_converged": (status == Status.converged).float().mean()}


def _adjoint_reports(task: pl.LightningModule) -> dict[str, Tensor]:
    """Return what the adjoint solves of this batch reported, if there were any."""
    strategy = task.gradient if isinstance(task, ImplicitTask) else None
    solutions = strategy.adjoint_solutions if isinstance(strategy, Implicit) else []
    if not solutions:
        return terms_of(strategy)
    return {
        "adjoint_steps": torch.cat([solution.steps for solution in solutions]).float().mean(),
        "adjoint_residual": torch.cat([solution.residual for solution in solutions]).mean(),
    }


def terms_of(strategy: Any) -> dict[str, Tensor]:
    """Return how many terms the series of the last backward pass had on average, where it ends by itself."""
    terms = strategy.terms if isinstance(strategy, NPG) else None
    return {} if terms is None else {"gradient_terms": terms.float().mean()}


def _estimate(task: ImplicitTask, loss: Tensor, equilibria: Sequence[Equilibrium]) -> list[dict[str, Tensor]]:
    """Return the estimates of every equilibrium behind the loss of a batch."""
    rows = []
    models = task.implicit_models()
    for index, (f, z, solution) in enumerate(equilibria):
        if solution is None:
            continue
        g = torch.autograd.grad(loss, parts(z), retain_graph=True, materialize_grads=True)
        assert task.gradient is not None  # something was solved
        audit = gradient_audit(task.gradient, f, solution.z, rebuild(g, like=z), task.net.parameters())
        values = {"spectral_radius": spectral_radius(f, solution.z).mean(), "gradient_cosine": audit.cosine}
        values |= {"gradient_norm_ratio": audit.norm_ratio, "audit_residual": audit.residual}
        if getattr(f, "partition", None) is None and len(parts(z)[0]) > 1:
            solver = models[min(index, len(models) - 1)].solver.for_mode(training=False)
            values["path_independence"] = path_independence(f, solution.z, solver).mean()
        rows.append({name: value.float() for name, value in values.items()})
    return rows
