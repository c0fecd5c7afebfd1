"""Language modelling: predict the next word, with a memory of the words before."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from deq_lightning.configured import CombinationError, at_least, whole
from deq_lightning.models import Equilibrium, Network
from deq_lightning.models.language.transformer import LanguageOutput, Memory, Segment
from deq_lightning.samples import TEXT, UNKNOWN_ID, TextSource
from deq_lightning.tasks.base import ImplicitTask
from deq_lightning.tasks.reports import solver_columns

LONGEST = 512  # words of a prompt that are read at once; a long text would not fit into memory


class Perplexity(MeanMetric):
    """The exponential of the mean over all words, of a whole split and of all processes."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # a figure that is not a number shall be seen

    def compute(self) -> Tensor:
        """Return exp(mean of −log p)."""
        return super().compute().exp()


class LanguageModeling(ImplicitTask):
    """Predicts the next word of every stream of a text, segment after segment, and reports the perplexity.

    Batches have `tokens` and `targets` (streams, length), ids of words and of those that follow them, and `first` where
    the streams begin. What the network remembers of a segment goes with the next batch of the split, and nowhere else:
    training has a memory of its own, which evaluations in the middle of an epoch leave alone, and which checkpoints
    keep; a `ModelCheckpoint` with `every_n_train_steps` writes those in the middle of an epoch. Logs `train_loss` (nats
    per word), `solver_steps` and `solver_residual` every step, and of whole splits `val_loss`, `val_ppl`,
    `test_loss`, `test_ppl`, the perplexity, with the solver's figures there under the same prefixes. `predict`
    continues a text, prints it, and returns a row per word; it never says `<unk>`.

    Args:
        net: the model; maps a segment to its hidden states and its memory.
        continue_words: words by which `predict` continues a text, 1 or more.
        temperature: of the distribution that it draws them from, 0 or more; 1 is the model's own, 0 always takes the
            most probable word.
        options: those of `ImplicitTask`, from `optimizer` to `compile`.

    Raises:
        ValueError: if an argument is out of its range, or `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup`, if the network or the data has no vocabulary, or not the same number of words.
    """

    net: Any  # its `vocabulary` is the embedding with the softmax; that of the data is the list of words
    takes = (TEXT,)
    monitor, mode = "val_ppl", "min"

    def __init__(self, net: Network, continue_words: int = 50, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(net, **options)
        whole(1, continue_words=continue_words)
        at_least(0, temperature=temperature)
        self.continue_words = continue_words
        self.temperature = temperature
        self.val_ppl, self.test_ppl = Perplexity(), Perplexity()
        self.memory: dict[str, Memory] = {}  # by split
        self._next: Memory | None = None
        self._saved: list[Tensor] | None = None
        self._text = ""

    def setup(self, stage: str) -> None:
        """Make sure that the network is one of words."""
        super().setup(stage)
        if not hasattr(self.net, "vocabulary"):
            raise CombinationError(
                f"`LanguageModeling` needs a network of words, got `{type(self.net).__name__}`. Choose "
                "`net=DEQTransformer`."
            )

    @property
    def _data(self) -> TextSource | None:
        """The text; None where there are loaders alone, or no trainer."""
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, TextSource) else None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Give the batch the memory of what came before in its split, if anything did."""
        del dataloader_idx
        return batch._replace(memory=None if batch.first else self.memory.get(self._split))

    @property
    def _split(self) -> str:
        return "train" if self.trainer.training else "test" if self.trainer.testing else "val"

    def answer(self, batch: Any) -> tuple[Tensor, Memory, list[Equilibrium]]:
        """Return −log p (streams, length) of the targets, the memory for the next segment, and the equilibria."""
        output, equilibria = self.read(Segment(batch.tokens, batch.memory))
        return self.net.vocabulary.nll(output.hidden, batch.targets), output.memory, equilibria

    def read(self, segment: Segment) -> tuple[LanguageOutput, list[Equilibrium]]:
        """Return what the network makes of a segment, and the equilibria."""
        return self.net(segment)

    def criterion(self, nll: Tensor, batch: Any, equilibria: Sequence[Equilibrium]) -> Tensor:
        """Return the loss of a training batch: the mean of −log p over its words."""
        del batch, equilibria
        return nll.mean()

    def measured(self, batch: Any, equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
        """Return further figures of each stream by name, whose means are logged, and which tables have as columns."""
        del batch, equilibria
        return {}

    def loss(self, batch: Any) -> tuple[Tensor, list[Equilibrium]]:
        """Return the loss of a training batch, which is not remembered."""
        nll, _, equilibria = self.answer(batch)
        return self.criterion(nll, batch, equilibria), equilibria

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch with the penalty added."""
        del batch_idx
        nll, self._next, equilibria = self.answer(batch)
        return self.total(self.criterion(nll, batch, equilibria), equilibria)

    def on_after_backward(self) -> None:
        """Remember the batch: not earlier, because a checkpoint written between loss and backward repeats it."""
        assert self._next is not None
        self.memory["train"], self._next = self._next, None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the perplexity of the validation split."""
        del batch_idx
        self._evaluate(batch, "val", self.val_ppl)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the perplexity of the test split."""
        del batch_idx
        self._evaluate(batch, "test", self.test_ppl)

    def _evaluate(self, batch: Any, split: str, perplexity: Perplexity) -> None:
        nll, self.memory[split], equilibria = self.answer(batch)
        perplexity.update(nll)
        self.log(f"{split}_loss", nll.mean(), sync_dist=True, batch_size=nll.numel())
        self.log(f"{split}_ppl", perplexity, prog_bar=True, batch_size=nll.numel())
        self.log_equilibria(equilibria, nll.numel(), prefix=f"{split}_")
        for name, values in self.measured(batch, equilibria).items():
            self.log(f"{split}_{name}", values.mean(), sync_dist=True, batch_size=nll.numel())

    def on_validation_end(self) -> None:
        """Drop the memory of the split."""
        self.memory.pop("val", None)

    def on_test_end(self) -> None:
        """Drop the memory of the split."""
        self.memory.pop("test", None)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return a row for each word that continues a text, the solver's figures among them; the text is one stream."""
        del batch_idx
        ids, probabilities, columns = zip(*self._continue(batch.tokens), strict=True)
        vocabulary = None if self._data is None else self._data.vocabulary
        numbers = torch.cat(ids, dim=1)[0].tolist()
        if vocabulary is not None:
            self._text = vocabulary.text(batch.tokens[0].tolist() + numbers)
        words = numbers if vocabulary is None else [vocabulary.words[number] for number in numbers]
        table: dict[str, Any] = {"word": np.array(words), "probability": torch.cat(probabilities, dim=1)[0]}
        return table | {name: torch.cat([column[name] for column in columns]) for name in columns[0]}

    def on_predict_end(self) -> None:
        """Print the text."""
        if self._text and self.trainer.is_global_zero:
            print(self._text)

    def _continue(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yield each further word (1, 1), its probability (1, 1) and the solver's figures."""
        memory = None
        before, tokens = tokens[:, :-LONGEST], tokens[:, -LONGEST:]
        for part in before.split(LONGEST, dim=1) if before.numel() else ():
            memory = self.read(Segment(part, memory))[0].memory
        for _ in range(self.continue_words):
            segment = Segment(tokens, memory)
            output, equilibria = self.read(segment)
            memory = output.memory
            log_prob = self.net.vocabulary.log_prob(output.hidden[:, -1:])[:, 0].float()
            tokens = self._draw(log_prob)
            columns = solver_columns(equilibria) | self.measured(segment, equilibria)
            yield tokens, log_prob.gather(1, tokens).exp(), columns

    def _draw(self, log_prob: Tensor) -> Tensor:
        """Return a known word for each row, (rows, 1)."""
        # The largest after adding Gumbel noise is a draw, and needs no division by a temperature that may be zero.
        scores = log_prob - self.temperature * torch.empty_like(log_prob).exponential_().log()
        scores[:, UNKNOWN_ID] = -torch.inf
        return scores.argmax(dim=1, keepdim=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what tells the vocabulary from others, and the memory of training of all processes, as plain data."""
        super().on_save_checkpoint(checkpoint)
        if self._data is not None:
            checkpoint["vocabulary"] = self._data.vocabulary_state()
        parts = self.memory.get("train", ())
        gathered = [cast(Tensor, self.all_gather(part)) for part in parts]  # (processes, streams, ...) of several
        checkpoint["memory"] = [
            whole.reshape(-1, *part.shape[1:]).clone() for whole, part in zip(gathered, parts, strict=True)
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make sure that the vocabulary is the same, and keep the memory until training starts."""
        super().on_load_checkpoint(checkpoint)
        if self._data is not None and "vocabulary" in checkpoint:
            self._data.check_vocabulary(checkpoint["vocabulary"])
        self._saved = checkpoint.get("memory")

    def on_train_start(self) -> None:
        """Restore the memory of this process's streams."""
        super().on_train_start()
        if self._saved:
            streams = len(self._saved[0]) // self.trainer.world_size
            own = slice(self.global_rank * streams, (self.global_rank + 1) * streams)
            self.memory["train"] = Memory(*(part[own].to(self.device) for part in self._saved))
        self._saved = None
