"""Several solves of every sample from random starts, of which one answer is chosen: breadth beside depth."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from deq_lightning.configured import CombinationError
from deq_lightning.models import Equilibrium, ImplicitModel
from deq_lightning.models.starts import partly_random
from deq_lightning.samples import UNLABELLED
from deq_lightning.tasks.base import ImplicitTask
from deq_lightning.tasks.supervised import SupervisedTask

Choice = Literal["residual", "majority"]


class Tries:
    """The answers of several starts, and how often any of them was right.

    Args:
        task: answers batches.
        starts: random starts for every sample.
        choose: the answer with the smallest `residual`, or that of the `majority`.
    """

    def __init__(self, task: SupervisedTask, starts: int, choose: Choice) -> None:
        self.task = task
        self.starts = starts
        self.choose = choose
        self.right: dict[str, list[Tensor]] = {}
        self._answer = task.answer

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return the chosen logits of every sample, the labels, and the equilibria of the last start."""
        all_logits, residuals = [], []
        for _ in range(self.starts):
            logits, y, equilibria = self._answer(batch, split)
            solution = equilibria[-1].solution
            assert solution is not None
            all_logits.append(logits)
            residuals.append(solution.residual)
        logits, residual = torch.stack(all_logits), torch.stack(residuals)
        if residual.shape != logits.shape[:2]:
            raise CombinationError("`restarts` need one answer for each sample that is solved. Leave them out.")
        answers = torch.stack([self.task.decide(one) for one in logits]).flatten(2)
        right = ((answers == y.flatten(1)) | (y.flatten(1) == UNLABELLED)).all(dim=2).any(dim=0)
        self.right.setdefault(self._name(), []).append(right)
        score = -residual if self.choose == "residual" else votes(answers)
        best = score.argmax(dim=0)
        return logits[best, torch.arange(len(best), device=best.device)], y, equilibria

    def _name(self) -> str:
        names, loop = self.task.test_names, self.task.trainer.test_loop
        return names[loop._results.dataloader_idx or 0] if names else ""

    def passed(self, name: str) -> float:
        """Return the share of the samples of a test set for which any of the answers was right."""
        return torch.cat(self.right[name]).float().mean().item()


def votes(answers: Tensor) -> Tensor:
    """Return (starts, batch) numbers of starts with the same answer; answers are (starts, batch, ...)."""
    return (answers[:, None] == answers[None]).flatten(3).all(dim=3).sum(dim=1)


@contextmanager
def restarted(task: ImplicitTask, starts: int, choose: Choice) -> Iterator[Tries]:
    """Let a task answer from random starts for a while.

    Raises:
        CombinationError: if the task is without labels, or its model does not start from a state.
    """
    net: Any = task.net
    if not isinstance(task, SupervisedTask) or not isinstance(net, ImplicitModel):
        raise CombinationError(
            f"`restarts` need labels and a model that starts from a state; `{type(task).__name__}` of "
            f"`{type(net).__name__}` is none. Leave them out."
        )
    tries = Tries(task, starts, choose)
    # Beside the methods of their classes, so that nothing has to be put back.
    vars(task)["answer"] = tries.answer
    vars(net)["first_state"] = lambda u: partly_random(net.initial_state(u), 1.0, net.start_std)
    try:
        yield tries
    finally:
        del vars(task)["answer"], vars(net)["first_state"]
