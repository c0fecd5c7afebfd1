"""What an answer costs in floating-point operations."""

from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities.data import extract_batch_size
from torch.utils.flop_counter import FlopCounterMode

from deq_lightning.estimators.modes import evaluating, solving
from deq_lightning.tasks import ImplicitTask


class Cost(NamedTuple):
    """Operations for a sample, as PyTorch counts them: those of matrix products and convolutions.

    Attributes:
        once: of everything but the solver's evaluations; those of the strategy are in it.
        evaluation: of one evaluation of every cell.
    """

    once: float
    evaluation: float


@torch.no_grad()
def cost_of(task: ImplicitTask, batch: Any) -> Cost:
    """Count the operations of a batch, with one evaluation of every cell; nothing of the run changes.

    Args:
        task: the task.
        batch: of its data.
    """
    one_evaluation = solving(task, max_steps=1, eval_max_steps=None, keep="best", rtol=0.0, atol=0.0)
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices), evaluating(task), one_evaluation:
        task.loss(batch)  # looks at how the samples of a cell depend on each other, which is no part of an answer
        with FlopCounterMode(display=False) as whole:
            equilibria = task.loss(batch)[1]
        once, evaluation, samples = whole.get_total_flops(), 0.0, None
        for f, _, solution in equilibria:
            if solution is not None:
                with FlopCounterMode(display=False) as cell:
                    f(solution.z)
                evaluation += cell.get_total_flops()
                once -= cell.get_total_flops() * solution.evaluations
                samples = samples or len(solution.steps)
    samples = samples or extract_batch_size(batch)
    return Cost(once / samples, evaluation / samples)
