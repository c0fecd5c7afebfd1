"""The text that comes with Python."""

import platform
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np

from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.text.base import SPLITS, TextDataModule
from deq_lightning.data.text.vocabulary import Vocabulary, words_and_signs


class PythonDocs(TextDataModule):
    """Python's own documentation, as `help()` has it: about 75,000 words that come with Python, nothing to download.

    Paragraphs, each once, without code and grammar, in lower case; words, numbers and signs count as words, and `<eos>`
    ends a paragraph. In every ten blocks of ten paragraphs, the ninth validates and the tenth tests. The text differs
    between versions of Python: compare figures from one version only.

    Args:
        vocab_size: number of words, including `<unk>` and `<eos>`: the most frequent of the training split; all others
            become `<unk>`. The default exists in all versions of Python. None: all words.
        batch_size: training streams per device, 1 or more.
        eval_batch_size: validation and test streams per device; by default `batch_size`.
        segment_length: words of a training segment, 1 or more.
        eval_segment_length: words of a validation or test segment; by default `segment_length`.
        prompt: text that `predict` continues. None: it begins a new paragraph.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if this Python comes without its documentation.
        SplitError: from `setup`, if a split is too short for its streams and segments.
        DataError: from `predict_dataloader`, if no word of the prompt is in the vocabulary; from `check_vocabulary`, if
            the vocabulary is not that of the checkpoint.
    """

    remedy = "Use that version of Python and that `vocab_size=N`, or train again."

    def __init__(
        self,
        vocab_size: int | None = 1800,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        segment_length: int = 32,
        eval_segment_length: int | None = None,
        prompt: str | None = None,
    ) -> None:
        super().__init__(vocab_size, batch_size, eval_batch_size, segment_length, eval_segment_length, prompt)

    def prepare_data(self) -> None:
        """Check that this Python comes with the text."""
        python_topics()

    def load(self) -> tuple[Vocabulary, dict[str, np.ndarray]]:
        """Clean the text, split it, and count its words."""
        lines: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
        for number, paragraph in enumerate(paragraphs(python_topics())):
            lines[{8: "val", 9: "test"}.get(number // 10 % 10, "train")].append(self.words(paragraph))
        vocabulary = Vocabulary.most_frequent(Counter(chain.from_iterable(lines["train"])), self.vocab_size)
        return vocabulary, {split: vocabulary.encode(lines[split]) for split in SPLITS}

    def words(self, text: str) -> list[str]:
        """Return words, numbers, single signs and runs of underscores."""
        return words_and_signs(text, letters="[A-Za-z]")

    def lines(self, text: str) -> list[list[str]]:
        """Return the words of each paragraph, which is what ends here."""
        return [self.words(" ".join(block.split())) for block in re.split(r"\n\s*\n", text)]

    @property
    def source(self) -> str:
        """The documentation and its version of Python."""
        return f"the documentation of Python {platform.python_version()}"


def python_topics() -> dict[str, str]:
    """Return the documentation by topic.

    Raises:
        DatasetNotFoundError: if this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DatasetNotFoundError(
            "`PythonDocs` reads `pydoc_data.topics`, which this Python lacks. Install its whole standard library, or "
            "choose other data, such as `data=WikiText2`."
        ) from error
    return topics


def paragraphs(topics: dict[str, str]) -> Iterator[str]:
    """Yield the paragraphs that are neither code nor grammar, each once: topics include each other."""
    seen = set()
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            paragraph = re.sub(r'[*=\-~^"]{3,}', "", " ".join(block.split())).strip()  # without rules under titles
            if paragraph and "::=" not in paragraph and ">>>" not in paragraph and paragraph not in seen:
                seen.add(paragraph)
                yield paragraph
