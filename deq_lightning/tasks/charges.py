"""What the tasks of models that choose how much to compute have in common."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deq_lightning.configured import CombinationError, above, at_least, whole
from deq_lightning.models import Equilibrium, Network
from deq_lightning.tasks.base import ImplicitTask


class ChoosingTask(ImplicitTask):
    r"""Charges a model for the layers that it turns on; a base beside that of a kind of target, which comes after it.

    The loss is :math:`L + \lambda\,\frac1B \sum_i [\beta \sum_l m_{il} w_l K_{il} / K_{\max} + \gamma \sum_l w_l
    m_{il} + \delta \sum_l m_{il}]`, where L is that of the other base, :math:`m_{il}` whether layer l is on for sample
    i, :math:`K_{il}` the steps of its solver out of at most :math:`K_{\max}`, and :math:`w_l` the layer's share of what
    a step of all costs. The gradient goes through m alone. (The paper does not define the first term; this is our
    choice.)

    A subclass keeps the choice of each answer in `choice`, and adds `cost` to the loss of training.

    Args:
        net: a model that chooses, with `think`.
        cost_weight: λ, 0 or more.
        iterations_weight: β, 0 or more.
        share_weight: γ, 0 or more.
        layers_weight: δ, 0 or more.
        choice_temperature: of the relaxed choice at the start of a run, above 0.
        final_choice_temperature: that at its end, above 0; linear in between. A run without an end stays at the first.
        warmup_epochs: epochs in which the introspection network does not learn, and chooses as it was initialised, and
            then as many in which it learns alone, before both learn. 0: none.
        options: those of the other base.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if the model cannot choose.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025, Eq. 5.
    """

    net: Any
    example = "MIND"

    def __init__(
        self,
        net: Network,
        cost_weight: float = 0.6,
        iterations_weight: float = 0.2,
        share_weight: float = 0.2,
        layers_weight: float = 0.1,
        choice_temperature: float = 1.0,
        final_choice_temperature: float = 0.5,
        warmup_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        at_least(
            0,
            cost_weight=cost_weight,
            iterations_weight=iterations_weight,
            share_weight=share_weight,
            layers_weight=layers_weight,
        )
        above(0, choice_temperature=choice_temperature, final_choice_temperature=final_choice_temperature)
        whole(0, warmup_epochs=warmup_epochs)
        if not hasattr(net, "think"):
            own, given = type(self).__name__, type(net).__name__
            raise CombinationError(f"`{own}` needs a model that chooses, such as `{self.example}`, got `{given}`.")
        self.cost_weight = cost_weight
        self.weights = (iterations_weight, share_weight, layers_weight)
        self.temperatures = (choice_temperature, final_choice_temperature)
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
