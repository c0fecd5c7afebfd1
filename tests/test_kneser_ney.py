"""The n-gram baseline of the language models, against sums and counts by hand."""

import math
import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
A, B, C, D = range(4)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_probabilities_sum_to_one_after_any_history(order: int) -> None:
    from kneser_ney import KneserNey

    words = random.Random(0).choices(range(12), weights=[1 / (i + 1) for i in range(12)], k=300)
    model = KneserNey(words, order, vocab_size=15)
    histories = [words[i : i + order - 1] for i in range(20)] + [[13] * (order - 1), [2, 13, 14], [], [3]]
    for history in histories:
        probabilities = [model.probability(word, history[-order + 1 :] if order > 1 else []) for word in range(15)]
        assert min(probabilities) > 0
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_a_bigram_model_by_hand() -> None:
    """a b a b a c: ab, ba twice and ac once, so D₂ = 1/5; before a only b, before b and c only a, so D₁ = 1."""
    from kneser_ney import KneserNey, kneser_ney_perplexity

    train = [A, B, A, B, A, C]
    unigram = 1 / 4  # every word has one word before it, which the discount takes: what is left is uniform
    model = KneserNey(train, order=2, vocab_size=4)
    after_a = {A: 0, B: 2 - 0.2, C: 1 - 0.2, D: 0}
    for word, seen in after_a.items():
        assert model.probability(word, [A]) == pytest.approx((seen + 0.2 * 2 * unigram) / 3)
    assert model.probability(A, [B]) == pytest.approx((1.8 + 0.2 * unigram) / 2)
    assert model.probability(B, [D]) == pytest.approx(unigram)
    expected = [unigram, (1.8 + 0.4 * unigram) / 3, (1.8 + 0.2 * unigram) / 2]
    perplexity = math.exp(-sum(map(math.log, expected)) / 3)
    assert kneser_ney_perplexity(train, [A, B, A], order=2, vocab_size=4) == pytest.approx(perplexity)


def test_lower_orders_count_the_words_before_and_not_the_occurrences() -> None:
    """As of San Francisco: b is frequent but only after a, c as frequent in all, after three different words."""
    from kneser_ney import KneserNey

    model = KneserNey([A, B, A, B, A, B, A, C, B, C, D, C, D, D], order=2, vocab_size=5)
    assert model.probability(C, [4]) > model.probability(B, [4])


def test_higher_orders_see_further() -> None:
    from kneser_ney import kneser_ney_perplexity

    words = [A, A, B, B] * 60
    perplexity = [kneser_ney_perplexity(words[:200], words[200:], order, 4) for order in (1, 2, 3)]
    assert perplexity[0] == pytest.approx(2, rel=0.05)
    assert perplexity[1] == pytest.approx(2, rel=0.1)
    assert perplexity[2] < 1.2
