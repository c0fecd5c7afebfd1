"""What the tasks of models that choose how much to compute have in common."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deq_lightning.configured import CombinationError, at_least, whole
from deq_lightning.models import Equilibrium
from deq_lightning.tasks.base import ImplicitTask


class ChoosingTask(ImplicitTask):
    """Charges a model for the layers that it turns on; a base beside that of a kind of target.

    A subclass calls `charge` once in its constructor, keeps the choice of each answer in `choice`, and adds `cost` to
    the loss of training.
    """

    net: Any
    example = "MIND"

    def charge(
        self,
        cost_weight: float,
        iterations_weight: float,
        share_weight: float,
        layers_weight: float,
        temperatures: tuple[float, float],
        warmup_epochs: int,
    ) -> None:
        """Say what is charged.

        Args:
            cost_weight: λ of all charges.
            iterations_weight: β of the share of steps out of the largest number of them.
            share_weight: γ of a layer's share of the cost of one step of all.
            layers_weight: δ of a layer.
            temperatures: of the relaxed choice at the start and at the end of a run.
            warmup_epochs: epochs in which introspection rests, and then as many in which it learns alone.
        """
        at_least(
            0,
            cost_weight=cost_weight,
            iterations_weight=iterations_weight,
            share_weight=share_weight,
            layers_weight=layers_weight,
        )
        whole(0, warmup_epochs=warmup_epochs)
        if not hasattr(self.net, "think"):
            own, given = type(self).__name__, type(self.net).__name__
            raise CombinationError(f"`{own}` needs a model that chooses, such as `{self.example}`, got `{given}`.")
        self.cost_weight = cost_weight
        self.weights = (iterations_weight, share_weight, layers_weight)
        self.temperatures = temperatures
        self.warmup_epochs = warmup_epochs
        self.choice = torch.empty(0, 0)  # (batch, layers) of the batch that was answered last

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the temperature that is due."""
        del batch, batch_idx
        first, last = self.temperatures
        steps = self.trainer.estimated_stepping_batches
        share = min(1.0, self.trainer.global_step / steps) if math.isfinite(steps) else 0.0
        self.net.temperature = first + share * (last - first)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the network that rests as it is: an optimizer passes over parameters without a gradient."""
        del optimizer
        phase = self.current_epoch // self.warmup_epochs if self.warmup_epochs else 2
        for name, parameter in self.net.named_parameters():
            if phase < 2 and name.startswith("introspection.") == (phase == 0):
                parameter.grad = None

    def cost(self, equilibria: Sequence[Equilibrium], flops: Any) -> Tensor | float:
        """Return what the layers of the batch that was answered last cost, λ times the mean over its samples.

        Args:
            equilibria: those of its layers.
            flops: what a sample of it costs, the model's `Flops`.
        """
        if self.cost_weight == 0 or not equilibria:
            return 0.0
        iterations, share, layers = self.weights
        steps = self.choice.new_tensor(flops.steps)
        spent = [
            torch.ones_like(on) if one.solution is None else one.solution.steps / layer.solver.max_steps
            for one, on, layer in zip(equilibria, self.choice.T, self.net.layers, strict=True)
        ]
        w = steps / steps.sum()
        prices = iterations * w * torch.stack(spent, dim=1) + share * w + layers
        return self.cost_weight * (self.choice * prices).sum(dim=1).mean()

    def spent(self, equilibria: Sequence[Equilibrium], flops: Any) -> dict[str, Tensor]:
        """Return of each sample how many layers were on, and the millions of operations that its answer took."""
        on, (once, steps) = self.choice.detach(), flops
        operations = torch.full((len(on),), float(once), device=on.device)
        for one, chosen, cost in zip(equilibria, on.T, steps, strict=True):
            assert self.gradient is not None  # there is an equilibrium
            solved = 0 if one.solution is None else one.solution.steps
            operations += chosen * (solved + self.gradient.evaluations) * cost
        return {"layers": on.sum(dim=1), "mflops": operations / 1e6}
