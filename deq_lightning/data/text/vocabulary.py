"""The data's vocabulary: words and ids without weights, which are in the network's `AdaptiveVocabulary`."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from deq_lightning.data.errors import DataError, printable
from deq_lightning.samples import UNKNOWN_ID

SPECIAL = ("<unk>", "<eos>")
END_ID = SPECIAL.index("<eos>")


def words_and_signs(text: str, letters: str = r"[^\W\d_]") -> list[str]:
    """Return words, numbers, single signs and runs of underscores of a text, in lower case.

    Args:
        text: the text.
        letters: pattern of what words are made of; by default the letters of all alphabets.
    """
    return re.findall(rf"{letters}+(?:['’]{letters}+)?|\d+|[^\w\s]|_+", text.lower())


class Vocabulary:
    """The word list of a text: `<unk>` is `UNKNOWN_ID`, `<eos>` is 1, then the others, the most frequent first.

    Args:
        words: words in the order of their ids.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    @classmethod
    def most_frequent(cls, counts: Counter[str], size: int | None) -> "Vocabulary":
        """Return the `size` most frequent words, or all for None; ties go to the words that came first.

        Raises:
            DataError: if there are fewer, or none.
        """
        others = [word for word, _ in counts.most_common() if word not in SPECIAL]
        largest = len(SPECIAL) + len(others)
        if not others:
            raise DataError("the train split has no words. Name a text that has some.")
        if size is not None and size > largest:
            raise DataError(
                f"`vocab_size` must be at most {largest}, the words of the train split, got {size}. "
                f"Set `vocab_size={largest}`, and `net.vocab_size={largest}` where that is given."
            )
        return cls([*SPECIAL, *others][:size])

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def fingerprint(self) -> str:
        """Hash that identifies the vocabulary."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, lines: Iterable[Sequence[str]]) -> np.ndarray:
        """Return (words,) the ids of lines of words, with `<eos>` at the end of each."""
        numbers = self.ids

        def ids_of(line: Sequence[str]) -> Iterator[int]:
            yield from (numbers.get(word, UNKNOWN_ID) for word in line)
            yield END_ID

        return np.fromiter(chain.from_iterable(map(ids_of, lines)), dtype=np.int32)

    def text(self, ids: Iterable[int]) -> str:
        """Return the words with these ids as text to be shown, with a line break for each `<eos>`."""
        words = ("\n" if number == END_ID else printable(self.words[number]) for number in ids)
        return " ".join(words).replace(" \n", "\n").replace("\n ", "\n").strip()


class Bytes(Vocabulary):
    """The 256 bytes, after the special words: any text can be written with them."""

    def __init__(self) -> None:
        names = (chr(byte) if 32 <= byte < 127 else f"<{byte:02X}>" for byte in range(256))
        super().__init__([*SPECIAL, *names])

    def split(self, text: str) -> list[str]:
        """Return the names of the bytes of a text."""
        return [self.words[byte + len(SPECIAL)] for byte in text.encode()]

    def text(self, ids: Iterable[int]) -> str:
        """Return the text that the bytes are, with a line break for each `<eos>`; what is no UTF-8 becomes `�`."""
        values = (ord("\n") if number == END_ID else number - len(SPECIAL) for number in ids)
        lines = bytes(value for value in values if value >= 0).decode(errors="replace").split("\n")
        return "\n".join(map(printable, lines)).strip()
