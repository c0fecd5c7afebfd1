"""The adaptive vocabulary: a distribution over the words, tied to the embedding."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from deq_lightning.models.language.adaptive import AdaptiveVocabulary

VOCAB, WIDTH = 23, 8
SHAPES = [((), 1), ((), 2), ((7,), 1), ((5, 11), 2), ((1, 3, 21), 2)]


def vocabulary(cutoffs: tuple[int, ...] = (5, 11), div_val: int = 2) -> AdaptiveVocabulary:
    """One with biases and vectors that all matter."""
    torch.manual_seed(0)
    words = AdaptiveVocabulary(VOCAB, WIDTH, cutoffs, div_val, init_std=None).double()
    with torch.no_grad():
        for parameter in words.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return words


def hidden(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("cutoffs", "div_val"), SHAPES)
def test_the_probabilities_of_all_words_sum_to_one(cutoffs: tuple[int, ...], div_val: int) -> None:
    log_prob = vocabulary(cutoffs, div_val).log_prob(hidden(3, 4))
    assert log_prob.shape == (3, 4, VOCAB)
    torch.testing.assert_close(log_prob.exp().sum(dim=-1), torch.ones(3, 4).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("cutoffs", "div_val"), SHAPES)
@pytest.mark.parametrize("shape", [(4, 50), (1, 1), (0, 3), (9,)])
def test_nll_is_that_of_the_targets_in_their_order(
    cutoffs: tuple[int, ...], div_val: int, shape: tuple[int, ...]
) -> None:
    words, h, targets = vocabulary(cutoffs, div_val), hidden(*shape), tokens(*shape)
    expected = -words.log_prob(h).gather(-1, targets[..., None])[..., 0]
    actual = words.nll(h, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if expected.numel():
        parameters = list(words.parameters())
        grads = [torch.autograd.grad(nll.sum(), parameters, materialize_grads=True) for nll in (actual, expected)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("cutoffs", "div_val"), SHAPES)
def test_against_the_definition_word_by_word(cutoffs: tuple[int, ...], div_val: int) -> None:
    words, h = vocabulary(cutoffs, div_val), hidden()
    edges = (0, *cutoffs, VOCAB)
    project_in = [p for p in words.projections] or [torch.eye(WIDTH).double()] * len(words.tables)
    project_out = [words.head_projection if div_val > 1 else project_in[0], *project_in[1:]]
    head = [words.tables[0][w] @ (project_out[0].T @ h) + words.biases[0][w] for w in range(edges[1])]
    head += [words.clusters[i] @ (project_out[0].T @ h) + words.cluster_bias[i] for i in range(len(cutoffs))]
    head = torch.stack(head).exp() / torch.stack(head).exp().sum()
    embedded, actual = words.embed(torch.arange(VOCAB)), words.log_prob(h).exp()
    for i, (start, stop) in enumerate(pairwise(edges)):
        columns = WIDTH // div_val**i
        assert words.tables[i].shape == (stop - start, columns)
        logits = torch.stack(
            [words.tables[i][w] @ (project_out[i].T @ h) + words.biases[i][w] for w in range(stop - start)]
        )
        expected = head[:stop] if i == 0 else head[edges[1] + i - 1] * logits.exp() / logits.exp().sum()
        torch.testing.assert_close(actual[start:stop], expected[: stop - start], rtol=1e-10, atol=0)
        for w in range(start, stop):
            vector = math.sqrt(WIDTH) * project_in[i] @ words.tables[i][w - start]
            torch.testing.assert_close(embedded[w], vector, rtol=1e-10, atol=1e-12)


def test_without_cutoffs_it_is_the_ordinary_tied_softmax() -> None:
    words, h, targets = vocabulary((), 1), hidden(2, 30), tokens(2, 30)
    (table,), (bias,) = words.tables, words.biases
    assert sum(parameter.numel() for parameter in words.parameters()) == VOCAB * WIDTH + VOCAB
    torch.testing.assert_close(words.embed(targets), math.sqrt(WIDTH) * F.embedding(targets, table))
    expected = F.cross_entropy((h @ table.T + bias).flatten(0, 1), targets.flatten(), reduction="none").view(2, 30)
    torch.testing.assert_close(words.nll(h, targets), expected)


@pytest.mark.parametrize(("cutoffs", "div_val"), SHAPES)
def test_tied_tensors_are_one_parameter(cutoffs: tuple[int, ...], div_val: int) -> None:
    """So tables and tail projections receive the sum of both gradients, those of the head only their own."""
    words = vocabulary(cutoffs, div_val)
    widths = [WIDTH // div_val**i for i in range(len(cutoffs) + 1)]
    sizes = [stop - start for start, stop in pairwise((0, *cutoffs, VOCAB))]
    expected = sum(n * w for n, w in zip(sizes, widths, strict=True)) + VOCAB + len(cutoffs) * (WIDTH + 1)
    expected += sum(WIDTH * w for w in widths) + WIDTH**2 if div_val > 1 else 0
    assert sum(parameter.numel() for parameter in words.parameters()) == expected
    pointers = [parameter.data_ptr() for parameter in words.parameters()]
    assert len(set(pointers)) == len(pointers)

    def gradient(output: torch.Tensor) -> dict[str, torch.Tensor]:
        grads = torch.autograd.grad(output, list(words.parameters()), materialize_grads=True)
        return dict(zip(dict(words.named_parameters()), grads, strict=True))

    every = torch.arange(VOCAB)
    both = gradient(words.embed(every).sin().sum() + words.nll(hidden(VOCAB), every).sum())
    into, out = gradient(words.embed(every).sin().sum()), gradient(words.nll(hidden(VOCAB), every).sum())
    for name, grad in both.items():
        torch.testing.assert_close(grad, into[name] + out[name], rtol=1e-10, atol=1e-12)
        tied = name.startswith("tables") or (name.startswith("projections") and name != "projections.0")
        assert bool(into[name].any() and out[name].any()) == tied


@pytest.mark.parametrize("cutoffs", [(), (3000, 6000)])
def test_initialisation(cutoffs: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    published = AdaptiveVocabulary(9000, 64, cutoffs, div_val=2)
    for name, parameter in published.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
    scaled = AdaptiveVocabulary(9000, 64, cutoffs, div_val=2, init_std=None)
    embedded, logits = scaled.embed(torch.arange(9000)), scaled._head(torch.randn(100, 64))
    for start, stop in pairwise((0, *cutoffs, 9000)):
        assert embedded[start:stop].std().item() == pytest.approx(1, rel=0.1)
    assert logits.std().item() == pytest.approx(1, rel=0.1)
    for i in range(1, len(cutoffs) + 1):
        assert scaled._tail(i, torch.randn(100, 64)).std().item() == pytest.approx(1, rel=0.1)


def test_the_scale_of_embeddings_is_the_square_root_of_the_width_unless_given() -> None:
    torch.manual_seed(0)
    published = AdaptiveVocabulary(VOCAB, WIDTH, (5, 11), 2)
    torch.manual_seed(0)
    scaled = AdaptiveVocabulary(VOCAB, WIDTH, (5, 11), 2, embedding_scale=3.0)
    torch.testing.assert_close(published.embed(tokens(9)) / WIDTH**0.5, scaled.embed(tokens(9)) / 3)


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_words_that_are_none_are_refused(bad: int) -> None:
    words, few = vocabulary(), torch.tensor([[0, 3, bad]])
    with pytest.raises(ValueError, match=f"words must be from 0 to vocab_size − 1 = 22, got .*{bad}"):
        words.embed(few)
    with pytest.raises(ValueError, match="words must be from 0"):
        words.nll(hidden(1, 3), few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cutoffs": (11, 5)}, r"`cutoffs` must be increasing, above 0 and below `vocab_size`, got \[11, 5\] for 23"),
        ({"cutoffs": (0, 5)}, "increasing, above 0"),
        ({"cutoffs": (5, 23)}, "below `vocab_size`"),
        ({"cutoffs": (2, 5), "div_val": 3}, r"`width` must be .* got 8 < 3\^2"),
        ({"vocab_size": 0}, "`vocab_size` must be 1 or more, got 0"),
        ({"init_std": 0.0}, "`init_std` must be above 0, got 0.0"),
        ({"embedding_scale": 0.0}, "`embedding_scale` must be above 0, got 0.0"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveVocabulary(**{"vocab_size": VOCAB, "width": WIDTH, **arguments})
