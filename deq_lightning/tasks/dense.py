"""Labels at every position: puzzles, sequences, mazes."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

from deq_lightning.configured import CombinationError, RunError, above, one_of, whole
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import PUZZLES, UNLABELLED
from deq_lightning.tasks.random_state import of_every_process
from deq_lightning.tasks.segments import Segments
from deq_lightning.tasks.supervised import SupervisedTask

Batch = tuple[Tensor, Tensor]
Criterion = Literal["cross_entropy", "stablemax"]
CARRY = "segments"


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of every position, (batch, ...), 0 where there is no label."""
    return F.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="none")


def stablemax(logits: Tensor, y: Tensor) -> Tensor:
    """Return the same with s(x) = x + 1 for x ≥ 0 and 1 / (1 − x) below in place of exp, in double precision.

    References:
        Prieto et al., "Grokking at the edge of numerical stability", 2025, arXiv:2501.04697.
    """
    x = logits.double() if logits.device.type != "mps" else logits.float()
    scores = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp_max(0)))
    return F.nll_loss((scores / scores.sum(dim=1, keepdim=True)).log(), y, ignore_index=UNLABELLED, reduction="none")


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "stablemax": stablemax}


class DensePrediction(SupervisedTask):
    """Labels every position, and reports the share of samples that are right at all of them, which ranks models.

    Logs `train_loss` and the solver's figures every step, and over whole splits `val_loss`, `val_exact_acc` (all
    labelled positions of a sample are right), `val_acc` (of positions), and the same of every test set by its name:
    `test_exact_acc/128`. The loss is the mean over samples of the mean over their labelled positions.

    With `segments` above 1 a training step is one segment of deep supervision: it starts from the state that the last
    one on the same sample has come to, and a sample stays for so many steps. Evaluation takes `eval_segments` in a
    row. All of it is in checkpoints, and a resumed run is the uninterrupted one.

    Args:
        net: the model; maps inputs to logits (batch, classes, ...), for labels (batch, ...).
        criterion: the loss, `cross_entropy` or `stablemax`, as in the published recursive reasoners.
        segments: segments of a sample in training, 1 or more; 1: none, every step has a new batch. More need a model
            that starts from a state, an `ImplicitModel`.
        eval_segments: segments in evaluation. None: as many as in training.
        halting: whether the model also learns to say when a sample is solved, with `halting(z)`, and a training sample
            that is said to be solved leaves early.
        halting_weight: factor of that binary cross-entropy.
        explore: probability that a sample which would leave early must stay for a random number of segments.
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if the model cannot start from a state, or cannot say when a sample is solved.
    """

    takes = (PUZZLES,)

    def __init__(
        self,
        net: Network,
        criterion: Criterion = "cross_entropy",
        segments: int = 1,
        eval_segments: int | None = None,
        halting: bool = False,
        halting_weight: float = 0.5,
        explore: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        one_of(CRITERIA, criterion=criterion)
        above(0, "Without it leave `halting` out.", halting_weight=halting_weight)
        self.carry = Segments(segments, explore)
        self.eval_segments = segments if eval_segments is None else eval_segments
        whole(1, eval_segments=self.eval_segments)
        name = type(net).__name__
        if (segments > 1 or self.eval_segments > 1) and not hasattr(net, "first_state"):
            raise CombinationError(f"`segments` need an implicit model, which can start from a state, got `{name}`.")
        if halting and not hasattr(net, "halting"):
            raise CombinationError(f"`halting` needs a model that has it, such as `RecursiveReasoner`, got `{name}`.")
        self.criterion_of = CRITERIA[criterion]
        self.halting_weight = halting_weight if halting else 0.0
        classes = max(2, getattr(net, "num_classes", 2))
        given: dict[str, Any] = {"ignore_index": UNLABELLED, "validate_args": False}
        self.measure(exact_acc=MulticlassExactMatch(classes, **given), acc=MulticlassAccuracy(average="micro", **given))

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss that was chosen."""
        labelled = (y != UNLABELLED).flatten(1).sum(dim=1).clamp_min(1)
        return (
            (self.criterion_of(logits, y).flatten(1).sum(dim=1) / labelled)
            .mean()
            .to(torch.promote_types(logits.dtype, torch.float32))
        )

    def answer(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return the logits after all segments of evaluation, the labels, and the equilibria of the last segment."""
        del split
        x, y = batch
        logits, equilibria = self.net(x)
        for _ in range(self.eval_segments - 1):
            logits, equilibria = self.net(x, start=carried(equilibria))
        return logits, y, equilibria

    def loss(self, batch: Batch) -> tuple[Tensor, list[Equilibrium]]:
        """Return the loss of a training batch, or of the segment that comes next."""
        x, y = batch
        if self.carry.most == 1 or not self.training:  # estimates look at a batch without letting it in
            logits, equilibria = self.net(x)
            return self._loss(logits, y, equilibria)[0], equilibria
        net: Any = self.net
        with torch.no_grad():
            x, y, start = self.carry.enter(x, y, lambda new: net.first_state(net.inject(new)))
        logits, equilibria = net(x, start=start)
        loss, stop = self._loss(logits, y, equilibria)
        self.carry.leave(carried(equilibria), stop)
        return loss, equilibria

    def _loss(self, logits: Tensor, y: Tensor, equilibria: list[Equilibrium]) -> tuple[Tensor, Tensor | None]:
        """Return the loss, and which samples are said to be solved."""
        loss = self.criterion(logits, y)
        if not self.halting_weight:
            return loss, None
        net: Any = self.net
        says = net.halting(equilibria[-1].z)
        halting = F.binary_cross_entropy_with_logits(says, solved(logits, y).to(says))
        return loss + self.halting_weight * halting, says.detach() > 0

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Any]:
        """Return for each sample whether all labelled positions are right, what share of them, and the answer."""
        answer = self.decide(logits)
        texts = np.array([" ".join(map(str, row)) for row in answer.flatten(1).tolist()])
        if y is None:
            return {"answer": texts}
        labelled = (y != UNLABELLED).flatten(1)
        right = (answer == y).flatten(1) & labelled
        return {"exact": solved(logits, y).long(), "accuracy": right.sum(dim=1) / labelled.sum(dim=1), "answer": texts}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the samples that are under way, of every process."""
        super().on_save_checkpoint(checkpoint)
        if self.carry.places is not None:
            checkpoint[CARRY] = of_every_process(self.trainer, self.carry.places)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them, and know the names of the classes.

        Raises:
            RunError: if what was saved is no such thing.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(CARRY)
        if saved is None or self.carry.most == 1 or getattr(self, "_trainer", None) is None:
            return
        try:
            own = saved[self.trainer.global_rank] if len(saved) == self.trainer.world_size else None
            self.carry.places = None if own is None else {name: own[name] for name in ("x", "y", "z", "count", "done")}
        except (LookupError, TypeError) as error:
            raise RunError(f"`{CARRY}` of the checkpoint must be the samples under way. Use another.") from error


def solved(logits: Tensor, y: Tensor) -> Tensor:
    """Return (batch,) whether every labelled position is right."""
    return ((logits.argmax(dim=1) == y) | (y == UNLABELLED)).flatten(1).all(dim=1)


def carried(equilibria: list[Equilibrium]) -> Any:
    """Return the state that the next segment starts from, without its graph."""
    return tree_map_only(Tensor, Tensor.detach, equilibria[-1].z)
