"""Image classification and language modelling by models that choose how much to compute."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deq_lightning.configured import above
from deq_lightning.models import Equilibrium, Network
from deq_lightning.models.language.transformer import LanguageOutput, Segment
from deq_lightning.tasks.charges import ChoosingTask
from deq_lightning.tasks.classification import Batch, ImageClassification
from deq_lightning.tasks.language import LanguageModeling


class AdaptiveClassification(ChoosingTask, ImageClassification):
    r"""Classifies images, and charges the model for the layers that it turns on.

    The loss is :math:`L + \lambda\,\frac1B \sum_i [\beta \sum_l m_{il} w_l K_{il} / K_{\max} + \gamma \sum_l w_l
    m_{il} + \delta \sum_l m_{il}]`, where L is the criterion, :math:`m_{il}` whether layer l is on for sample i,
    :math:`K_{il}` the steps of its solver out of at most :math:`K_{\max}`, and :math:`w_l` the layer's share of what a
    step of all costs. The gradient goes through m alone. (The paper does not define the first term; this is our
    choice.)

    Logs, besides what `ImageClassification` does, `val_layers` and `test_layers`, the mean number of layers that are
    on, and `val_mflops` and `test_mflops`, the mean of millions of floating-point operations; predictions have columns
    of these. A layer's steps count where it is on, as do the evaluations of the strategy after the solve.

    Args:
        net: the model: `MIND`.
        cost_weight: λ, 0 or more.
        iterations_weight: β, 0 or more.
        share_weight: γ, 0 or more.
        layers_weight: δ, 0 or more.
        temperature: of the relaxed choice at the start of a run, above 0.
        final_temperature: that at its end, above 0; linear in between. A run without an end stays at the first.
        warmup_epochs: epochs in which the introspection network does not learn, and chooses as it was initialised, and
            then as many in which it learns alone, before both learn. 0: none.
        options: those of `ImageClassification` and of `ImplicitTask`.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if the model cannot choose.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025, Eq. 5.
    """

    def __init__(
        self,
        net: Network,
        cost_weight: float = 0.6,
        iterations_weight: float = 0.2,
        share_weight: float = 0.2,
        layers_weight: float = 0.1,
        temperature: float = 1.0,
        final_temperature: float = 0.5,
        warmup_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        above(0, temperature=temperature, final_temperature=final_temperature)
        temperatures = (temperature, final_temperature)
        self.charge(cost_weight, iterations_weight, share_weight, layers_weight, temperatures, warmup_epochs)

    def answer(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return all logits and labels of a batch of (images, labels)."""
        del split
        x, y = batch
        logits, equilibria, self.choice = self.net.think(x)
        return logits, y, equilibria

    def loss(self, batch: Batch) -> tuple[Tensor, list[Equilibrium]]:
        """Return the loss of a training batch, with what its layers cost."""
        loss, equilibria = super().loss(batch)
        return loss + self.cost(equilibria, self.net.flops(*batch[0].shape[2:])), equilibria

    def measured(self, batch: Batch, equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
        """Return of each sample how many layers were on, and the millions of operations that its answer took."""
        return self.spent(equilibria, self.net.flops(*batch[0].shape[2:]))


class AdaptiveLanguageModeling(ChoosingTask, LanguageModeling):
    """Predicts the next word, and charges the model for the fixed points that it turns on.

    The loss, and `train_loss`, is that of `AdaptiveClassification` with streams for samples and the mean of −log p for
    L. The figures that it logs besides those of `LanguageModeling` are the same, with the operations of a stream's
    segment, and so are the columns of the words by which `predict` continues a text.

    Args:
        net: the model: `MINDTransformer`.
        cost_weight: λ, 0 or more.
        iterations_weight: β, 0 or more.
        share_weight: γ, 0 or more.
        layers_weight: δ, 0 or more.
        choice_temperature: of the relaxed choice at the start of a run, above 0.
        final_choice_temperature: that at its end, above 0; linear in between. A run without an end stays at the first.
        warmup_epochs: epochs in which the introspection network rests, and then as many in which it learns alone,
            before both learn. 0: none.
        options: those of `LanguageModeling` and of `ImplicitTask`.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if the model cannot choose.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025, Eq. 5.
    """

    example = "MINDTransformer"

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
        above(0, choice_temperature=choice_temperature, final_choice_temperature=final_choice_temperature)
        temperatures = (choice_temperature, final_choice_temperature)
        self.charge(cost_weight, iterations_weight, share_weight, layers_weight, temperatures, warmup_epochs)

    def read(self, segment: Segment) -> tuple[LanguageOutput, list[Equilibrium]]:
        """Return what the network makes of a segment, and keep what it chose."""
        output, equilibria, self.choice = self.net.think(segment)
        return output, equilibria

    def criterion(self, nll: Tensor, batch: Any, equilibria: Sequence[Equilibrium]) -> Tensor:
        """Return the mean of −log p, with what the fixed points cost."""
        return super().criterion(nll, batch, equilibria) + self.cost(equilibria, self._flops(batch))

    def measured(self, batch: Any, equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
        """Return of each stream how many fixed points were on, and the millions of operations of its segment."""
        return self.spent(equilibria, self._flops(batch))

    def _flops(self, batch: Any) -> Any:
        memory = batch.memory
        return self.net.flops(batch.tokens.shape[1], 0 if memory is None else memory.z.shape[1])
