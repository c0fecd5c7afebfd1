"""Text of your own, from files."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deq_lightning.configured import CombinationError, one_of
from deq_lightning.data.base import Size, check_sizes, samples_in
from deq_lightning.data.errors import DatasetNotFoundError, SplitError
from deq_lightning.data.text.base import SPLITS, TextDataModule
from deq_lightning.data.text.reading import read_text
from deq_lightning.data.text.vocabulary import SPECIAL, Bytes, Vocabulary, words_and_signs
from deq_lightning.samples import UNKNOWN_ID

SUFFIXES = (".txt", ".md")
END = "<eos>"
KINDS = ("words", "bytes")


class TextFiles(TextDataModule):
    """Your own text: all `.txt` and `.md` files of a folder, one after the other, or one file of any name, in UTF-8.

    The begin of the text trains, what follows validates, and the end tests; where the folder has a `train.txt`, that
    trains, `val.txt` and `test.txt` are the other splits if they exist, and no other file is read. Of words, numbers
    and signs in lower case, `<eos>` ends a line; of bytes, it ends a file.

    Args:
        root: the folder, whose files are read in the order of their paths at any depth, or the file.
        tokens: what a model reads and says, `words` or `bytes`. Bytes need no vocabulary, keep case and spaces, and
            make streams about five times as long.
        vocab_size: number of words, including `<unk>` and `<eos>`: the most frequent of the training split; all others
            become `<unk>`. None: all that occur twice or more. Not for bytes, of which there are 256.
        val_size: words, or bytes, that validate, where there is no such split: their number, or their share of the text
            that is not in another split, in (0, 1).
        test_size: words, or bytes, that test, likewise; the rest trains.
        batch_size: training streams per device, 1 or more.
        eval_batch_size: validation and test streams per device; by default `batch_size`.
        segment_length: words, or bytes, of a training segment, 1 or more.
        eval_segment_length: those of a validation or test segment; by default `segment_length`.
        prompt: text that `predict` continues. None: it begins a new line, or file.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if `vocab_size` is set for bytes.
        DatasetNotFoundError: from `prepare_data` and `setup`, if the text is missing, empty, or not UTF-8.
        SplitError: from `setup`, if the sizes do not fit, or a split is too short for its streams and segments.
        DataError: from `setup`, if no word of a split is in the vocabulary; from `predict_dataloader`, if none of the
            prompt is; from `check_vocabulary`, if the vocabulary is not that of the checkpoint.
    """

    remedy = "Set `root=PATH`, `tokens`, `vocab_size`, `val_size` and `test_size` as they were, or train again."

    def __init__(
        self,
        root: str,
        tokens: Literal["words", "bytes"] = "words",
        vocab_size: int | None = None,
        val_size: Size = 0.1,
        test_size: Size = 0.1,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        segment_length: int = 32,
        eval_segment_length: int | None = None,
        prompt: str | None = None,
    ) -> None:
        super().__init__(vocab_size, batch_size, eval_batch_size, segment_length, eval_segment_length, prompt)
        one_of(KINDS, tokens=tokens)
        check_sizes(val_size=val_size, test_size=test_size)
        if tokens == "bytes" and vocab_size is not None:
            raise CombinationError("`vocab_size` counts words, and `tokens=bytes` has none. Leave one of them out.")
        self.root = root
        self.tokens = tokens
        self.val_size = val_size
        self.test_size = test_size
        self.unit = tokens

    @property
    def source(self) -> str:
        """The path of the text."""
        return f"`{self.root}`"

    def words(self, text: str) -> list[str]:
        """Return the words, numbers and signs of a text in lower case, or the names of its bytes."""
        return words_and_signs(text) if self.tokens == "words" else Bytes().split(text)

    def lines(self, text: str) -> list[list[str]]:
        """Return the words of each line, or the bytes of all, which have their own ends of lines."""
        return super().lines(text) if self.tokens == "words" else [self.words(text)]

    def prepare_data(self) -> None:
        """Read the text, so that a fault stops the run at its start."""
        for files in self.files().values():
            for file in files:
                read_text(file)

    def load(self) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        """Read, split and count the words, or the bytes; once."""
        if self.vocabulary is None or not self.texts:
            texts = {split: [read_text(file) for file in files] for split, files in self.files().items()}
            load = self._words_of if self.tokens == "words" else self._bytes_of
            self.vocabulary, self.texts = load(texts)
        return self.vocabulary, self.texts

    def _bytes_of(self, texts: dict[str, list[str]]) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        vocabulary = Bytes()
        ends = vocabulary.encode([[]])
        parts = {
            split: [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(SPECIAL) for text in some]
            for split, some in texts.items()
        }
        return vocabulary, self._split(
            {
                split: np.concatenate([*chain.from_iterable((one, ends) for one in some)])
                for split, some in parts.items()
            }
        )

    def _words_of(self, texts: dict[str, list[str]]) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        splits = self._split({split: list(_with_ends(some)) for split, some in texts.items()})
        counts = Counter(word for word in splits["train"] if word != END)
        if self.vocab_size is None:
            counts = Counter({word: count for word, count in counts.items() if count > 1}) or counts
        vocabulary = Vocabulary.most_frequent(counts, self.vocab_size)
        ids = vocabulary.ids
        return vocabulary, {
            split: np.fromiter((ids.get(word, UNKNOWN_ID) for word in some), np.int32) for split, some in splits.items()
        }

    def _split(self, texts: dict[str, Any]) -> dict[str, Any]:
        """Return the splits, those that are missing taken from the end of "train"."""
        train, wanted = texts["train"], {"test": self.test_size, "val": self.val_size}
        sizes = {split: samples_in(size, len(train)) for split, size in wanted.items() if split not in texts}
        if sum(sizes.values()) >= len(train):
            raise SplitError(
                f"{' and '.join(f'`{split}_size`' for split in sizes)} must leave some of the {len(train)} {self.unit} "
                f"to train on, got {' + '.join(map(str, sizes.values()))}. Set smaller ones."
            )
        parts = dict(texts)
        for split, size in sizes.items():
            train, parts[split] = train[:-size], train[-size:]
        return {split: {**parts, "train": train}[split] for split in SPLITS}

    def files(self) -> dict[str, list[Path]]:
        """Return the files of each split that has its own; else all are in "train".

        Raises:
            DatasetNotFoundError: if there are none.
        """
        root = Path(self.root).expanduser()
        if root.is_file():
            return {"train": [root]}
        if not root.is_dir():
            raise DatasetNotFoundError(
                f"there is no `{self.root}`. Set `root=PATH` to name a folder of texts or a file."
            )
        if (root / "train.txt").is_file():
            named = {split: root / f"{split}.txt" for split in SPLITS}
            return {split: [file] for split, file in named.items() if file.is_file()}
        visible = (one for one in root.rglob("*") if not any(part[0] == "." for part in one.relative_to(root).parts))
        found = sorted(one for one in visible if one.suffix.lower() in SUFFIXES and one.is_file())
        if not found:
            raise DatasetNotFoundError(
                f"`{self.root}` has no text in it ({' or '.join(SUFFIXES)}). Set `root=PATH` to name a folder of texts "
                "or a file."
            )
        return {"train": found}


def _with_ends(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words of all lines, and the end of each."""
    for text in texts:
        for line in text.splitlines():
            yield from words_and_signs(line)
            yield END
