"""Image classification and language modelling by models that choose how much to compute."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deq_lightning.models import Equilibrium
from deq_lightning.models.language.transformer import LanguageOutput, Segment
from deq_lightning.tasks.charges import ChoosingTask
from deq_lightning.tasks.classification import Batch, ImageClassification
from deq_lightning.tasks.language import LanguageModeling


class AdaptiveClassification(ChoosingTask, ImageClassification):
    """Classifies images, and charges the model for the layers that it turns on: `MIND`.

    Logs, besides what `ImageClassification` does, `val_layers` and `test_layers`, the mean number of layers that are
    on, and `val_mflops` and `test_mflops`, the mean of the millions of floating-point operations that an answer took,
    those of convolutions and linear layers: the solver's steps where a layer is on, and what the strategy evaluates
    after the solve. Predictions have columns of both. Arguments are those of `ChoosingTask`, then of
    `ImageClassification`.
    """

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
    """Predicts the next word, and charges the model for the fixed points that it turns on: `MINDTransformer`.

    Streams are the samples. The figures that it logs besides those of `LanguageModeling` are those of
    `AdaptiveClassification`, with the operations of a stream's segment, and so are the columns of the words by which
    `predict` continues a text. Arguments are those of `ChoosingTask`, then of `LanguageModeling`.
    """

    example = "MINDTransformer"

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
