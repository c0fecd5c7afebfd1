"""What counting words reaches, the baseline of small language models: interpolated Kneser-Ney n-grams.

Kneser and Ney, "Improved backing-off for m-gram language modeling", 1995; in the interpolated form of Chen and Goodman,
"An empirical study of smoothing techniques for language modeling", 1999.
"""

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[int]


class KneserNey:
    """Interpolated Kneser-Ney model with one discount per order, n₁ / (n₁ + 2 n₂), over the uniform distribution.

    Args:
        train: word numbers from 0 to `vocab_size` − 1.
        order: longest n-gram, 1 or more.
        vocab_size: number of words.
    """

    def __init__(self, train: Words, order: int, vocab_size: int) -> None:
        self.order = order
        self.vocab_size = vocab_size
        grams = Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))
        self.levels = [_Level(grams)]
        for _ in range(order - 1):
            grams = Counter(gram[1:] for gram in grams)  # lower orders count the different words before
            self.levels.insert(0, _Level(grams))

    def probability(self, word: int, history: Words) -> float:
        """Return p(word | the last order − 1 words of the history)."""
        probability = 1 / self.vocab_size
        for length, level in enumerate(self.levels[: len(history) + 1]):
            probability = level.probability(word, tuple(history[len(history) - length :]), probability)
        return probability


class _Level:
    """The counts of one order.

    Args:
        grams: how often each n-gram counts.
    """

    def __init__(self, grams: Counter[tuple[int, ...]]) -> None:
        self.grams = grams
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.followers: Counter[tuple[int, ...]] = Counter()
        for gram, count in grams.items():
            self.totals[gram[:-1]] += count
            self.followers[gram[:-1]] += 1
        often = Counter(grams.values())
        self.discount = often[1] / (often[1] + 2 * often[2]) if often[1] else 0.5

    def probability(self, word: int, history: tuple[int, ...], lower: float) -> float:
        """Return the discounted share of the word, plus what was discounted times its probability one order lower."""
        total = self.totals[history]
        if not total:
            return lower
        seen = max(self.grams[(*history, word)] - self.discount, 0)
        return (seen + self.discount * self.followers[history] * lower) / total


def kneser_ney_perplexity(train: Words, test: Words, order: int, vocab_size: int) -> float:
    """Return the perplexity per word of the test words, each given those before it in the test."""
    model = KneserNey(train, order, vocab_size)
    histories = (test[max(i - order + 1, 0) : i] for i in range(len(test)))
    nll = -sum(math.log(model.probability(word, history)) for word, history in zip(test, histories, strict=True))
    return math.exp(nll / len(test))
