"""WikiText, words of Wikipedia's articles, read from the files of the official distribution."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deq_lightning.data.errors import DataError, DatasetNotFoundError
from deq_lightning.data.text.base import TextDataModule
from deq_lightning.data.text.vocabulary import Vocabulary

FILES = {"train": "train", "val": "valid", "test": "test"}
PATTERNS = ("wiki.{}.tokens", "{}.txt")  # of the official archive, and of other copies of WikiText-2


class WikiText(TextDataModule):
    """Base of the two WikiText corpora: words between spaces, with their case, and `<eos>` at the end of every line.

    The text is turned into ids once, under `encoded/` beside it, and again when it or `vocab_size` changes; training
    reads it from there without holding it in memory.

    Args:
        root: folder that holds `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`, or `train.txt`,
            `valid.txt` and `test.txt`.
        vocab_size: number of words, including `<unk>` and `<eos>`: the most frequent of the training split; all others
            become `<unk>`. None: all words.
        batch_size: training streams per device, 1 or more.
        eval_batch_size: validation and test streams per device; None: `batch_size`.
        segment_length: words of a training segment, 1 or more.
        eval_segment_length: words of a validation or test segment; by default `segment_length`.
        prompt: text that `predict` continues, with spaces around punctuation. None: it begins a new line.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if the files are missing or damaged.
        SplitError: from `setup`, if a split is too short for its streams and segments.
        DataError: from `prepare_data`, if the ids cannot be written; from `setup`, if no word of a split is in the
            vocabulary; from `predict_dataloader`, if none of the prompt is; from `check_vocabulary`, if the vocabulary
            is not that of the checkpoint.
    """

    archive: ClassVar[str]
    remedy = "Set `root=PATH` and `vocab_size=N` as they were, or train again."

    def __init__(
        self,
        root: str,
        vocab_size: int | None = None,
        batch_size: int = 56,
        eval_batch_size: int | None = 16,
        segment_length: int = 150,
        eval_segment_length: int | None = None,
        prompt: str | None = None,
    ) -> None:
        super().__init__(vocab_size, batch_size, eval_batch_size, segment_length, eval_segment_length, prompt)
        self.root = root

    def prepare_data(self) -> None:
        """Turn the text into ids, unless that has been done."""
        files = self.files()
        folder = self.encoded(files)
        if folder.is_dir():
            return
        try:
            folder.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
                self._encode(files, Path(unfinished, folder.name))
                _move(Path(unfinished, folder.name), folder)
            for other in folder.parent.iterdir():
                own = re.fullmatch(r"([0-9a-f]{16})-(all|\d+)", other.name)
                if own and own[1] != folder.name[:16]:  # of a text that is no longer there
                    shutil.rmtree(other, ignore_errors=True)
        except UnicodeDecodeError as error:
            raise DatasetNotFoundError(f"the text under `{self.root}/` is damaged ({error}). {self._obtain}") from error
        except OSError as error:
            raise DataError(
                f"the ids of the words cannot be written to `{folder.parent}/` ({error.strerror}). Make room, or set "
                "`root=PATH` to name a copy of the text where you may write."
            ) from error

    def load(self) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        """Open the vocabulary and ids that `prepare_data` wrote."""
        folder = self.encoded(self.files())
        if not folder.is_dir():
            raise DatasetNotFoundError(f"`{self.root}` is not prepared. Call `prepare_data()` before `setup()`.")
        try:
            words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            return Vocabulary(words), {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in FILES}
        except (OSError, ValueError, EOFError) as error:
            raise DatasetNotFoundError(f"`{folder}` is damaged ({error}). Delete it and try again.") from error

    def words(self, text: str) -> list[str]:
        """Return the words of a line, which are separated by spaces."""
        return text.split()

    @property
    def source(self) -> str:
        """The name of the corpus."""
        return type(self).__name__

    def files(self) -> dict[str, Path]:
        """Return the file of each split.

        Raises:
            DatasetNotFoundError: if one is missing.
        """
        for pattern in PATTERNS:
            files = {split: Path(self.root, pattern.format(name)) for split, name in FILES.items()}
            if all(file.is_file() for file in files.values()):
                return files
        names = ", ".join(f"`{PATTERNS[0].format(name)}`" for name in FILES.values())
        raise DatasetNotFoundError(
            f"`{type(self).__name__}` was not found under `{self.root}/` (expected {names}). {self._obtain}"
        )

    @property
    def _obtain(self) -> str:
        return f"Unpack {self.archive}, or set `root=PATH` to name the folder that holds the files."

    def encoded(self, files: dict[str, Path]) -> Path:
        """Return the folder of the ids, whose name changes with the text and `vocab_size`."""
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
        digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        return Path(self.root, "encoded", f"{digest}-{self.vocab_size or 'all'}")

    def _encode(self, files: dict[str, Path], folder: Path) -> None:
        """Write the vocabulary and the ids to a new folder; line by line, because the text may be large."""
        counts: Counter[str] = Counter()
        for line in self._lines(files["train"]):
            counts.update(line)
        vocabulary = Vocabulary.most_frequent(counts, self.vocab_size)
        folder.mkdir()
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.words, ensure_ascii=False), encoding="utf-8")
        for split, file in files.items():
            np.save(folder / f"{split}.npy", vocabulary.encode(self._lines(file)), allow_pickle=False)

    def _lines(self, file: Path) -> Iterator[list[str]]:
        with file.open(encoding="utf-8") as lines:
            yield from map(self.words, lines)


def _move(folder: Path, place: Path) -> None:
    """Put a folder in its place, all or nothing, unless another process was faster."""
    try:
        os.rename(folder, place)
    except OSError:
        if not place.is_dir():
            raise


class WikiText2(WikiText):
    """WikiText-2: 2,088,628 training words of Wikipedia's articles, 33,278 different ones, with `<eos>`.

    Args:
        root: folder that holds `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`, or `train.txt`,
            `valid.txt` and `test.txt`.
        options: those of `WikiText`.

    References:
        Merity et al., "Pointer sentinel mixture models", 2016, arXiv:1609.07843. CC BY-SA.
    """

    archive = "https://wikitext.smerity.com/wikitext-2-v1.zip"

    def __init__(self, root: str = "data/wikitext-2", **options: Any) -> None:
        super().__init__(root, **options)


class WikiText103(WikiText):
    """WikiText-103: 103,227,021 training words of Wikipedia's articles, 267,735 different ones, with `<eos>`.

    Args:
        root: folder that holds `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`.
        options: those of `WikiText`.

    References:
        Merity et al., "Pointer sentinel mixture models", 2016, arXiv:1609.07843. CC BY-SA.
    """

    archive = "https://wikitext.smerity.com/wikitext-103-v1.zip"

    def __init__(self, root: str = "data/wikitext-103", **options: Any) -> None:
        super().__init__(root, **options)
