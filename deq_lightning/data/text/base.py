"""The base class of text data modules."""

import sys
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from deq_lightning.configured import whole
from deq_lightning.data.base import Described
from deq_lightning.data.errors import DataError, SplitError
from deq_lightning.data.text.reading import read_text
from deq_lightning.data.text.streams import StreamBatch, StreamLoader
from deq_lightning.data.text.vocabulary import END_ID, SPECIAL, Vocabulary
from deq_lightning.samples import TEXT, Samples

SPLITS = ("train", "val", "test")


class TextDataModule(Described):
    """Base class of text data modules. To derive one, implement `load`, `words` and `source`, and set `remedy`.

    Every split is one text, cut into as many contiguous streams as the batch has rows. Batches are the segments of all
    streams in order, so that a model can carry a memory; nothing is random. Several processes share the streams.

    After `setup`, `vocabulary` holds the words, and `texts` the splits as ids.

    Args:
        vocab_size: number of words, including `<unk>` and `<eos>`: the most frequent of the training split; all others
            become `<unk>`. None: all words.
        batch_size: training streams per device, 1 or more.
        eval_batch_size: validation and test streams per device; by default `batch_size`.
        segment_length: words of a training segment, 1 or more.
        eval_segment_length: words of a validation or test segment; by default `segment_length`.
        prompt: text that `predict` continues. None: it begins a new line.

    Raises:
        ValueError: if an argument is out of its range.
        SplitError: from `setup`, if a split is too short for its streams and segments.
        DataError: from `setup`, if no word of a split is in the vocabulary; from `predict_dataloader`, if none of the
            prompt is; from `check_vocabulary`, if the vocabulary is not that of the checkpoint.
    """

    unit = "words"
    remedy: ClassVar[str]  # what to do where the vocabulary is not that of a checkpoint

    def __init__(
        self,
        vocab_size: int | None,
        batch_size: int,
        eval_batch_size: int | None,
        segment_length: int,
        eval_segment_length: int | None,
        prompt: str | None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.segment_length = segment_length
        self.eval_segment_length = segment_length if eval_segment_length is None else eval_segment_length
        whole(3, vocab_size=3 if vocab_size is None else vocab_size)
        whole(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        whole(1, segment_length=self.segment_length, eval_segment_length=self.eval_segment_length)
        self.prompt = prompt
        self.vocabulary: Vocabulary | None = None
        self.texts: dict[str, np.ndarray] = {}
        self._resumed: dict[str, Any] = {}

    @abstractmethod
    def load(self) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        """Return the vocabulary, and the word ids of the splits "train", "val" and "test"."""

    @abstractmethod
    def words(self, text: str) -> list[str]:
        """Return the words of a line."""

    def lines(self, text: str) -> list[list[str]]:
        """Return the words of each line."""
        return [self.words(line) for line in text.splitlines()]

    @property
    @abstractmethod
    def source(self) -> str:
        """Name of the text that the vocabulary was made from, for messages and checkpoints."""

    @property
    def samples(self) -> Samples:
        """Description of the text, which is read unless the number of words is given."""
        if self.vocab_size is None and self.vocabulary is None:
            self.prepare_data()
            self.vocabulary, self.texts = self.load()
        words = self.vocab_size if self.vocabulary is None else len(self.vocabulary)
        return Samples(TEXT, words=words)

    def setup(self, stage: str | None = None) -> None:
        """Read all splits, and check that those of `stage` can be used."""
        self.vocabulary, self.texts = self.load()
        for split in {"validate": ("val",), "test": ("test",), "predict": ()}.get(str(stage), SPLITS):
            self._check(split)

    def split_sizes(self) -> dict[str, int]:
        """Return how many words each split has."""
        return {split: len(self.texts[split]) for split in SPLITS if split in self.texts}

    def _check(self, split: str) -> None:
        """Check that a split has known words, and streams that hold a segment and the word after it."""
        text, (_, processes) = self.texts[split], self._share
        if not any((text[start : start + 100_000] >= len(SPECIAL)).any() for start in range(0, len(text), 100_000)):
            raise DataError(
                f"no word of the {split} split of `{type(self).__name__}` is in the vocabulary, which has the words of "
                "the train split. Are all of one text, and not empty?"
            )
        names = ("batch_size", "segment_length") if split == "train" else ("eval_batch_size", "eval_segment_length")
        streams, length = (getattr(self, name) for name in names)
        words = len(text) // (streams * processes)
        if words <= length:
            together = f"{streams} streams" + (f" on each of {processes} devices" if processes > 1 else "")
            smaller = f"`{names[1]}={words - 1}`" if words > 1 else f"a smaller `{names[0]}=N`"
            raise SplitError(
                f"the {len(text)} {self.unit} of the {split} split make {together} of {words} {self.unit}, too short "
                f"for a segment of {length} {self.unit} and the one after it. Set {smaller}."
            )

    @property
    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StreamLoader:
        """Return the segments of the training streams."""
        return self._loader("train", self.batch_size, self.segment_length, self._start)

    def val_dataloader(self) -> StreamLoader:
        """Return the segments of the validation streams."""
        return self._loader("val", self.eval_batch_size, self.eval_segment_length)

    def test_dataloader(self) -> StreamLoader:
        """Return the segments of the test streams."""
        return self._loader("test", self.eval_batch_size, self.eval_segment_length)

    def _loader(self, split: str, streams: int, length: int, start: Callable[[], int] = int) -> StreamLoader:
        if not self.texts:
            raise RuntimeError(f"`{type(self).__name__}` is empty. Call `setup()` before asking for a loader.")
        return StreamLoader(self.texts[split], streams * self._share[1], length, self._share, start)

    def _start(self) -> int:
        """Return the segment that a training epoch begins with: a later one than the first if a run resumes in it."""
        if self.trainer is None or not self.trainer.training:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch:
            return sys.maxsize  # resumed from the end of an epoch, which Lightning has yet to finish: nothing is left
        start = progress.current.ready
        for name, value in self._layout.items() if start > 0 else ():
            if self._resumed.get(name, value) != value:
                raise DataError(
                    f"a run that stopped in the middle of an epoch continues on the same streams: `{name}` was "
                    f"{self._resumed[name]} (over all devices), and is {value}. Set it as it was, or begin a new run "
                    "from its `weights=PATH`."
                )
        return start

    @property
    def _layout(self) -> dict[str, int]:
        return {"batch_size": self.batch_size * self._share[1], "segment_length": self.segment_length}

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return one stream: the end of a line, and the prompt if there is one."""
        assert self.vocabulary is not None
        ids = [END_ID]
        if self.prompt is not None:
            ids += self.vocabulary.encode(self.lines(self.prompt))[:-1].tolist()
            if not any(number >= len(SPECIAL) for number in ids):
                raise DataError(
                    f"no word of the prompt {self.prompt!r} is in the vocabulary. Set `prompt=TEXT` with words of "
                    f"{self.source}."
                )
        tokens = torch.tensor([ids])
        return DataLoader([StreamBatch(tokens, tokens[:, :0], first=True)], batch_size=None)  # type: ignore[arg-type]

    def inputs(self, path: str) -> "TextDataModule":
        """Return itself, with the text of a file, or for `-` of standard input, as its prompt.

        The words are those of the training text, which is read again.
        """
        self.prompt = read_text(Path(path) if path == "-" else Path(path).expanduser()).removesuffix("\n")
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the layout of the training streams."""
        return self._layout

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved layout, to be compared with this run's where training resumes."""
        self._resumed = state_dict

    def vocabulary_state(self) -> dict[str, Any]:
        """Return what identifies the vocabulary; the task saves it, because its weights depend on it."""
        assert self.vocabulary is not None
        return {"fingerprint": self.vocabulary.fingerprint, "words": len(self.vocabulary), "source": self.source}

    def check_vocabulary(self, saved: dict[str, Any]) -> None:
        """Raise a DataError unless the vocabulary is that of the checkpoint."""
        own = self.vocabulary_state()
        if own["fingerprint"] != saved["fingerprint"]:
            theirs, ours = (f"{state['words']} words of {state['source']}" for state in (saved, own))
            raise DataError(
                f"the checkpoint has another vocabulary: it was trained with {theirs}; here are {ours}. {self.remedy}"
            )
