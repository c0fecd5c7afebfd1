"""`python -m deq_lightning scale`: what a checkpoint reaches with more and fewer solver steps."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl

from deq_lightning.app.messages import UsageError
from deq_lightning.app.tables import Row, draw, show, show_line, write
from deq_lightning.configured import CombinationError, ascending, listed, one_of, whole, within
from deq_lightning.estimators import path_independence
from deq_lightning.estimators.modes import evaluating, solving
from deq_lightning.estimators.path_independence import Starts
from deq_lightning.state import parts
from deq_lightning.tasks import ImplicitTask
from deq_lightning.tasks.restarts import Choice, restarted

RTOL = 1e-3  # where the solver of the checkpoint never stops by itself


class ScaleTrainer(pl.Trainer):
    """Lightning's trainer with what `scale` does."""

    def scale(
        self,
        model: ImplicitTask,
        datamodule: pl.LightningDataModule,
        budgets: tuple[int, ...] | str | None = None,
        rtol: float | None = None,
        restarts: int = 1,
        choose: Choice = "residual",
        output: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Test a checkpoint with several budgets of the solver, and write a table and a picture.

        For every budget, and every test set of the data: the figures of the test, the solver's residual and steps, and
        the share of samples that converged, that is, stopped by themselves. With the largest budget also how far the
        equilibria are independent of the start (`path_independence`, on the first batch).

        Args:
            model: the task.
            datamodule: the data.
            budgets: evaluations of the cell, each 1 or more, ascending, such as 10,20,40. None: 5, 10, 20 and so on, up
                to 160, or to those that the model has in evaluation where they are more.
            rtol: relative residual at which a sample stops by itself, in [0, 1). None: the solver's own, or 1e-3 where
                that is 0.
            restarts: solves of every sample from random starts, of whose answers one is chosen. 1: the usual start.
            choose: the answer with the smallest `residual`, or that of the `majority`.
            output: path of the files to write, without an ending. None: `scale` beside the checkpoint.
            ckpt_path: the checkpoint.
            weights_only: as for Lightning.

        Raises:
            UsageError: if an argument is out of its range.
            CombinationError: if nothing is solved, or there is no answer to choose.
        """
        counts = _numbers(budgets)
        _check(counts, rtol, restarts, choose)
        solvers = [one.solver for one in model.implicit_models()]
        if not solvers:
            raise CombinationError(f"`scale` needs an equilibrium, and `{type(model.net).__name__}` has none.")
        counts = counts or _doubled(max(solver.eval_max_steps or solver.max_steps for solver in solvers))
        rtol = max(solver.rtol for solver in solvers) or RTOL if rtol is None else rtol
        path = Path(output) if output is not None else Path(ckpt_path or ".").with_name("scale")
        rows: list[Row] = []
        for budget in counts:
            changed = solving(model, max_steps=budget, eval_max_steps=None, rtol=rtol)
            with changed, restarted(model, restarts, choose) if restarts > 1 else nullcontext() as tries:
                self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)
                ckpt_path = None  # its weights are there now
                own = dict(_rows(self, model.test_names))
                for name, row in own.items():
                    row |= {f"pass@{restarts}": tries.passed(name)} if tries is not None else {}
                if budget == counts[-1]:
                    for name, cosine in _independence(self, model, datamodule):
                        own[name]["path_independence"] = cosine
            rows += [{"budget": budget, **({"set": name} if name else {}), **row} for name, row in own.items()]
        rows.sort(key=lambda row: list(model.test_names).index(row["set"]) if "set" in row else 0)
        protocol = {"rtol": rtol, "restarts": restarts, **({"choose": choose} if restarts > 1 else {})}
        show(rows, protocol)
        show_line(rows)
        write(path, rows, protocol)
        figure = model.monitor.replace("val_", "test_", 1)
        draw(path, rows, figure if figure in rows[0] else next(name for name in rows[0] if name.startswith("test_")))


def _numbers(budgets: Sequence[int] | str | None) -> Sequence[int] | None:
    """Return budgets as they were typed, as numbers."""
    if not isinstance(budgets, str):
        return budgets
    try:
        return [int(one) for one in budgets.split(",")]
    except ValueError as error:
        raise UsageError(f"`--budgets` must be whole numbers, such as 10,20,40, got {budgets}.") from error


def _doubled(most: int) -> Sequence[int]:
    """Return 5, 10, 20, 40, 80, 160, and so on below `most`, and then that."""
    doubled = [5 * 2**power for power in range(max(6, most.bit_length()))]
    return [one for one in doubled if one <= 160 or one < most] + ([most] if most > 160 else [])


def _check(budgets: Sequence[int] | None, rtol: float | None, restarts: int, choose: str) -> None:
    """Raise a UsageError unless the arguments are in their ranges."""
    try:
        if budgets is not None:
            listed(budgets=budgets)
            for budget in budgets:
                whole(1, budgets=budget)
            ascending(budgets=budgets)
        within("[0, 1)", rtol=0 if rtol is None else rtol)
        whole(1, restarts=restarts)
        one_of(get_args(Choice), choose=choose)
    except ValueError as error:
        raise UsageError(str(error).replace("`", "`--", 1)) from error


def _rows(trainer: pl.Trainer, names: Any) -> Iterator[tuple[str, Row]]:
    """Yield the figures of each test set, by its name; the name is empty where there is one."""
    figures = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test_")}
    for own in names or [""]:
        ends = f"/{own}" if own else ""
        yield own, {name.removesuffix(ends): value for name, value in figures.items() if name.endswith(ends)}


def _independence(
    trainer: pl.Trainer, task: ImplicitTask, data: pl.LightningDataModule
) -> Iterator[tuple[str, float | None]]:
    """Yield the path independence of the first batch of each test set; None where nothing was solved."""
    loaders = data.test_dataloader()
    several = isinstance(loaders, list)
    for name, loader in zip(task.test_names or [""], loaders if several else [loaders], strict=False):
        batch = trainer.strategy.batch_to_device(next(iter(loader)))
        with evaluating(task):
            equilibria = task.loss(batch)[1]
        scores = []
        for one, solved in zip(equilibria, task.implicit_models(), strict=False):
            if one.solution is not None:
                swapped = getattr(one.f, "partition", None) is None and len(parts(one.solution.z)[0]) > 1
                starts: Starts = "permuted" if swapped else "noise"
                scores.append(path_independence(one.f, one.solution.z, solved.solver, starts).mean())
        yield name, sum(score.item() for score in scores) / len(scores) if scores else None
