"""MIND for text: its equations, what it may look at, and runs that are interrupted."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from support.runs import assert_equal
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deq_lightning import (
    UPG,
    AdaptiveLanguageModeling,
    Anderson,
    DEQTransformer,
    FixedPointIteration,
    Implicit,
    LanguageModeling,
    MINDTransformer,
    PythonDocs,
    Segment,
)
from deq_lightning.configured import CombinationError
from deq_lightning.models import Memory

VOCAB, WIDTH, HEADS, INNER, LAYERS, STREAMS = 20, 8, 2, 12, 2, 3
EXACT = Anderson(max_steps=300, rtol=1e-12)


def transformer(**arguments: Any) -> MINDTransformer:
    """A small one in float64, in evaluation, without dropout."""
    torch.manual_seed(0)
    small = dict(memory_length=4, introspection_widths=(6,), dropout=0.0, solver=EXACT)
    return MINDTransformer(VOCAB, WIDTH, HEADS, INNER, LAYERS, **{**small, **arguments}).double().eval()


def tokens(length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (STREAMS, length), generator=torch.Generator().manual_seed(seed))


def memory(length: int, streams: int = STREAMS) -> Memory:
    draws = torch.Generator().manual_seed(2)
    z, u = torch.randn(2, streams, length, LAYERS * WIDTH, dtype=torch.float64, generator=draws)
    return Memory(z, u)


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- equations


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def rows_of(part: Any, x: Tensor) -> Tensor:
    """The map that is fed back: rows of length `scale` on a state that a soft norm has bounded."""
    rows = 0.9 * part.feedback.weight / part.feedback.weight.norm(dim=1, keepdim=True)
    return x / (1 + x.square().mean(-1, keepdim=True)).sqrt() @ rows.T


def attention(part: Any, h: Tensor, before: Tensor, state: Tensor | None) -> Tensor:
    """softmax((Q Kᵀ + f(A) Kᵀ)/√d + b) V of each head, query by query; without a state the ordinary one."""
    q = part.query(layer_norm(part.norm, h))
    q = q if state is None else q + rows_of(part, state)
    k, v = part.key_value(layer_norm(part.norm, torch.cat([before, h], dim=1))).chunk(2, dim=-1)
    past, found = before.shape[1], torch.zeros_like(h)
    for head, own in enumerate(torch.arange(WIDTH).chunk(HEADS)):
        for i in range(h.shape[1]):
            seen = past + i + 1
            score = torch.einsum("sd,skd->sk", q[:, i, own], k[:, :seen, own]) / math.sqrt(len(own))
            score -= 2 ** (-8 * (head + 1) / HEADS) * torch.arange(seen - 1, -1, -1)
            found[:, i, own] = torch.einsum("sk,skd->sd", score.softmax(-1), v[:, :seen, own])
    return found


def feed_forward(part: Any, h: Tensor, state: Tensor | None) -> Tensor:
    inner = layer_norm(part.norm, h) @ part.inner.weight.T + part.inner.bias
    inner = inner if state is None else inner + rows_of(part, state)
    return inner.clamp(min=0) @ part.outer.weight.T + part.outer.bias


def by_hand(net: MINDTransformer, words: Tensor, past: Memory, states: list[Tensor | None]) -> tuple[Tensor, list]:
    """Return the hidden states, and what each part's equation makes of its state."""
    h, values = net.vocabulary.embed(words), []
    for place, (part, state) in enumerate(zip(net.layers, states, strict=True)):
        before = past[place % 2].chunk(LAYERS, dim=2)[place // 2]
        value = feed_forward(part, h, state) if place % 2 else attention(part, h, before, state)
        values.append(value)
        h = h + (value if place % 2 else value @ part.out.weight.T + part.out.bias)
    return layer_norm(net.norm, h), values


@pytest.mark.parametrize("past", [0, 3])
def test_with_everything_off_it_is_an_ordinary_transformer(past: int) -> None:
    net, words, before = transformer(), tokens(5), memory(past)
    expected, _ = by_hand(net, words, before, 2 * LAYERS * [None])
    off = torch.zeros(STREAMS, 2 * LAYERS)
    for mode in (net.eval(), net.train()):
        close(mode.think(Segment(words, before), off).output.hidden, expected)
    plain = transformer(variant="none")
    plain.load_state_dict({name: net.state_dict()[name] for name in plain.state_dict()})
    output, equilibria = plain(Segment(words, before))
    close(output.hidden, expected)
    assert not equilibria and plain.think(Segment(words)).choice.shape == (STREAMS, 0)


@pytest.mark.parametrize("past", [0, 3])
def test_the_states_solve_the_printed_equations(past: int) -> None:
    net, words, before = transformer(variant="all"), tokens(5), memory(past)
    with torch.no_grad():
        output, equilibria = net(Segment(words, before))
        states = [one.z for one in equilibria]
        hidden, values = by_hand(net, words, before, states)
    assert len(states) == 2 * LAYERS and all(one.solution.steps.min() > 2 for one in equilibria)
    close(values, states, 1e-8)
    close(output.hidden, hidden, 1e-8)


def test_maps_are_contractions_at_the_start_at_the_published_widths() -> None:
    torch.manual_seed(0)
    net = MINDTransformer(100, layers=1, variant="all", introspection_widths=()).eval()
    with torch.no_grad():
        _, equilibria = net(Segment(torch.randint(100, (2, 20))))
    assert max(one.solution.steps.max() for one in equilibria) < 20
    assert max(one.solution.residual.max() for one in equilibria) < 1e-3


# --- what it may look at


@pytest.mark.parametrize("training", [False, True])
def test_no_word_depends_on_a_later_one(training: bool) -> None:
    net, changed = transformer().train(training), tokens(6).clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    results = []
    for words in (tokens(6), changed):
        torch.manual_seed(0)  # the noise of the choice
        results.append(net.think(Segment(words, memory(4))))
    one, other = results
    assert torch.equal(one.choice, other.choice) and one.choice.any()
    close(one.output.hidden[:, :3], other.output.hidden[:, :3], 1e-8)
    assert ((one.output.hidden - other.output.hidden)[:, 3:].abs().amax(dim=-1) > 1e-4).all()


def test_a_segment_is_what_the_choice_of_the_next_one_sees() -> None:
    """Through means over the remembered positions; a stream begins with means of zero."""
    net = transformer()
    first = net.think(Segment(tokens(6)))
    assert torch.equal(
        first.choice, (net.introspection(torch.zeros(STREAMS, 2 * LAYERS * WIDTH).double()) > 0).double()
    )
    kept = first.output.memory
    assert kept.z.shape == kept.u.shape == (STREAMS, 4, LAYERS * WIDTH) and not kept.z.requires_grad
    embedded = net.vocabulary.embed(tokens(6))
    close(kept.z[..., :WIDTH], embedded[:, 2:])
    means = torch.cat([kept.z, kept.u], dim=2).mean(dim=1)
    assert torch.equal(net.choose(kept), (net.introspection(means) > 0).double())


def test_segments_with_enough_memory_equal_one_long_segment() -> None:
    net, words = transformer(variant="all", memory_length=7), tokens(10)
    whole, parts, last = net(Segment(words))[0].hidden, [], None
    for part in words.split([4, 3, 3], dim=1):
        (hidden, last), _ = net(Segment(part, last))
        parts.append(hidden)
    close(torch.cat(parts, dim=1), whole, 1e-8)


# --- choice


def test_only_streams_that_are_on_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = transformer(solver=FixedPointIteration(max_steps=5)), []
    for kind in {type(part) for part in net.layers}:

        def counted(self: Any, z: Tensor, u: Any, cell: Any = kind.cell) -> Tensor:
            seen.append(len(z))
            return cell(self, z, u)

        monkeypatch.setattr(kind, "cell", counted)
    on = torch.zeros(STREAMS, 2 * LAYERS)
    on[1, 1] = 1
    with torch.no_grad():
        off = net.think(Segment(tokens(5), memory(3)), 0 * on).output.hidden
        assert not seen
        thought = net.think(Segment(tokens(5), memory(3)), on)
    assert max(seen) == 1
    steps = [one.solution.steps.tolist() for one in thought.equilibria]
    assert steps == [[0, 0, 0], [0, 5, 0], [0, 0, 0], [0, 0, 0]]
    close(thought.output.hidden[[0, 2]], off[[0, 2]])
    assert (thought.output.hidden[1] - off[1]).abs().max() > 1e-3


def test_implicit_gradients_equal_finite_differences() -> None:
    net = transformer()
    for part in net.layers:
        part.gradient = Implicit(adjoint_solver=Anderson(max_steps=300, rtol=1e-12))
    segment = Segment(tokens(4), memory(3))
    on = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]])

    def loss() -> Tensor:
        return net.think(segment, on).output.hidden.square().mul(torch.arange(WIDTH)).sum()

    parameters = {name: part for name, part in net.named_parameters() if "introspection" not in name}
    gradients = torch.autograd.grad(loss(), list(parameters.values()), materialize_grads=True)
    draws = torch.Generator().manual_seed(3)
    directions = [torch.randn(part.shape, dtype=torch.float64, generator=draws) for part in parameters.values()]
    expected: dict[str, float] = {}
    for group in ("feedback", "query", "key_value", "inner", "outer", "norm", "vocabulary"):
        chosen = [(part, d) for (name, part), d in zip(parameters.items(), directions, strict=True) if group in name]
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                for part, direction in chosen:
                    part += step * direction
                values.append(loss())
            for part, direction in chosen:
                part += 1e-5 * direction
        expected[group] = (values[0] - values[1]).item() / 2e-5
    for group, slope in expected.items():
        parts = zip(parameters, gradients, directions, strict=True)
        found = sum((gradient * direction).sum().item() for name, gradient, direction in parts if group in name)
        assert found == pytest.approx(slope, rel=1e-5), group


def test_the_choice_learns_from_the_difference_that_fixed_points_make() -> None:
    """In training the value is off + m (on − off), whose derivative by m a choice either way makes known."""
    net = transformer(dropout=0.0).train()
    choice = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64, requires_grad=True)

    def loss(m: Tensor) -> Tensor:
        return net.think(Segment(tokens(5), memory(3)), m).output.hidden.square().mul(torch.arange(WIDTH)).sum()

    (gradient,) = torch.autograd.grad(loss(choice), choice)
    step = torch.zeros_like(choice)
    step[:, 3] = 1e-5
    with torch.no_grad():
        close((loss(choice + step) - loss(choice - step)) / 2e-5, gradient[:, 3].sum(), 1e-5)
    assert gradient.abs().min() > 0


# --- cost and task

WORDS, LENGTH = 60, 57


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{first}{second}" for first in "aeiouyz" for second in "bcdfghklmn"]
    draws = torch.Generator().manual_seed(0)
    numbers = (70 * torch.rand(100, 79, generator=draws) ** 2).int() // 2 * 2 + torch.arange(79) % 2
    paragraphs = (" ".join(words[number] for number in row) for row in numbers)
    monkeypatch.setattr("pydoc_data.topics.topics", {"all": "\n\n".join(paragraphs)})


def data() -> PythonDocs:
    return PythonDocs(WORDS, 16, 8, LENGTH)


def task(**options: Any) -> AdaptiveLanguageModeling:
    torch.manual_seed(0)
    net = MINDTransformer(
        WORDS, 8, 2, 12, 1, memory_length=5, introspection_widths=(4,), solver=FixedPointIteration(max_steps=4)
    )
    return AdaptiveLanguageModeling(net, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2), **options)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
    return pl.Trainer(accelerator="cpu", callbacks=[UPG(k=2), *callbacks], num_sanity_val_steps=0, **quiet, **options)


def test_operations_are_those_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the formula that is written out; the counter of PyTorch does not know the fast kernel of a CPU."""
    monkeypatch.setattr("deq_lightning.models.language.sublayers.differentiated", lambda: True)
    net, length, past = transformer(solver=FixedPointIteration(max_steps=3)), 5, 3
    segment = Segment(tokens(length)[:1], memory(past, streams=1))

    def counted(on: float) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter:
            thought = net.think(segment, torch.full((1, 2 * LAYERS), on))
        return counter.get_total_flops(), thought.equilibria

    once, steps = net.flops(length, past)
    assert counted(0.0)[0] == once
    total, equilibria = counted(1.0)
    solved = sum((one.solution.evaluations + UPG().evaluations) * c for one, c in zip(equilibria, steps, strict=True))
    assert total - once == solved


def test_the_loss_has_the_cost_of_what_is_on(text: None) -> None:
    docs, charged, free = data(), task(cost_weight=0.5), task(cost_weight=0.0)
    docs.setup("fit")
    batch = next(iter(docs.train_dataloader()))._replace(memory=None)
    losses = []
    for module in (charged, free):
        torch.manual_seed(1)
        losses.append(module.loss(batch))
    (with_cost, equilibria), (without, _) = losses
    steps = torch.tensor(charged.net.flops(LENGTH, 0).steps, dtype=torch.float32)
    shares, expected = steps / steps.sum(), torch.zeros(16)
    for place, one in enumerate(equilibria):
        price = 0.2 * shares[place] * one.solution.steps / 4 + 0.2 * shares[place] + 0.1
        expected += charged.choice[:, place].detach() * price
    close(with_cost - without, 0.5 * expected.mean(), 1e-5)
    assert 0 < charged.choice.mean() < 1
    with_cost.backward()
    assert charged.net.introspection[-1].bias.grad.abs().min() > 0


def test_figures_of_the_choice_and_columns_of_a_continued_text(text: None) -> None:
    module, docs = task(continue_words=3), data()
    (metrics,) = trainer().test(module, datamodule=docs, verbose=False)
    assert metrics["test_layers"] == 2.0  # the bias of the choice at the start
    once, steps = module.net.flops(LENGTH, 5)
    assert metrics["test_mflops"] > once / 1e6 + min(steps) / 1e6
    (table,) = trainer().predict(module, datamodule=docs)
    assert table["layers"].tolist() == [2.0, 2.0, 2.0] and len(table["mflops"]) == 3


class Save(pl.Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_equals_the_uninterrupted_one(text: None, tmp_path: Path) -> None:
    """In the middle of an epoch, with what the next choice is made from."""
    states = []
    for start in (None, tmp_path / "3.ckpt"):
        module = task()
        saves = [Save(3, tmp_path / "3.ckpt")] if start is None else []
        running = trainer(*saves, max_steps=6, limit_val_batches=0)
        running.fit(module, datamodule=data(), ckpt_path=start)
        assert module.memory["train"].u.shape == (16, 5, 8)
        running.save_checkpoint(tmp_path / "end.ckpt")
        whole = torch.load(tmp_path / "end.ckpt", weights_only=True)
        states.append({name: whole[name] for name in ("state_dict", "optimizer_states", "rng_state", "memory")})
    assert_equal(*states)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CombinationError, match=r"needs a model that chooses, such as `MINDTransformer`, got `DEQT"):
        AdaptiveLanguageModeling(DEQTransformer(VOCAB, 8, 2, 8, (), 1))
    with pytest.raises(ValueError, match="`heads` must divide `width`, got 3 for 8"):
        MINDTransformer(VOCAB, 8, 3)
    assert LanguageModeling(transformer()).net.vocabulary is not None
