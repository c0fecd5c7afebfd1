"""The language task: its figures by hand, its memory, and runs that are interrupted in the middle of an epoch."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support.marks import slow
from support.runs import QUIET, assert_equal

from deq_lightning import (
    MDEQ,
    UPG,
    Anderson,
    DEQTransformer,
    Digits,
    EquilibriumMonitor,
    JacobianPenalty,
    LanguageModeling,
    PythonDocs,
    WarmupCosineToEnd,
    WikiText2,
)
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError
from deq_lightning.data import DataError
from deq_lightning.data.text.vocabulary import SPECIAL
from deq_lightning.data.text.vocabulary import UNKNOWN_ID as UNKNOWN_IN_DATA
from deq_lightning.models.language.transformer import Segment
from deq_lightning.tasks.language import UNKNOWN_ID

WORDS, STREAMS, LENGTH = 60, 16, 57  # 7 steps an epoch, the last one on 57 words as well


def topics(seed: int = 0) -> dict[str, str]:
    """Return 100 paragraphs of 79 words from a list of 70, of which the first are frequent and mostly alternate."""
    words = [f"{first}{second}" for first in "aeiouyz" for second in "bcdfghklmn"]
    draws = np.random.default_rng(seed)
    numbers = (70 * draws.random((100, 79)) ** 2).astype(int) // 2 * 2 + np.arange(79) % 2
    return {"all": "\n\n".join(" ".join(words[number] for number in row) for row in numbers)}


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydoc_data.topics.topics", topics())


def data(**options: Any) -> PythonDocs:
    return PythonDocs(
        **{"vocab_size": WORDS, "batch_size": STREAMS, "eval_batch_size": 8, "segment_length": LENGTH, **options}
    )


def task(words: int = WORDS, **options: Any) -> LanguageModeling:
    torch.manual_seed(0)
    net = DEQTransformer(
        words, 8, 2, 12, (15, 30), 2, memory_length=5, dropout=0.1, init_std=None, solver=Anderson(max_steps=6)
    )
    make = dict(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2), **options)
    return LanguageModeling(net, **make)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
    return pl.Trainer(
        accelerator="cpu", callbacks=[UPG(k=2), *callbacks], **{**quiet, "num_sanity_val_steps": 0, **options}
    )


class Seen(pl.Callback):
    """Keeps what the training batches held, and the memory after them."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.memories: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.memories.append(task.memory["train"])


# --- figures


def by_hand(net: DEQTransformer, loader: Any) -> torch.Tensor:
    """Return −log p of every word of a split."""
    memory, losses = None, []
    with torch.inference_mode():
        for tokens, targets, *_ in loader:
            output, _ = net.eval()(Segment(tokens, memory))
            memory = output.memory
            losses += [-net.vocabulary.log_prob(output.hidden).gather(2, targets[:, :, None]).flatten()]
    return torch.cat(losses)


def test_perplexity_is_that_of_all_words() -> None:
    """The last segment is shorter than the others: a mean of their perplexities, or of their means, would differ."""
    module, docs = task(), data(eval_segment_length=30)
    (metrics,) = trainer().test(module, datamodule=docs, verbose=False)
    losses = by_hand(module.net, docs.test_dataloader())
    lengths = [batch.tokens.shape[1] for batch in docs.test_dataloader()]
    assert len(losses) == 8 * sum(lengths) and 0 < lengths[-1] < lengths[0] == 30
    assert metrics["test_loss"] == pytest.approx(losses.double().mean().item(), rel=1e-5)
    assert metrics["test_ppl"] == pytest.approx(losses.double().mean().exp().item(), rel=1e-5)
    segments = losses.split([8 * length for length in lengths])
    assert metrics["test_loss"] != pytest.approx(
        torch.stack([part.mean() for part in segments]).mean().item(), rel=1e-5
    )
    assert metrics["test_solver_steps"] > 1 and metrics["test_solver_residual"] > 0


def test_a_loss_that_is_not_a_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = task()
    monkeypatch.setattr(module.net.vocabulary, "nll", lambda hidden, targets: torch.full(targets.shape, math.nan))
    (metrics,) = trainer(limit_test_batches=2).test(module, datamodule=data(), verbose=False)
    assert math.isnan(metrics["test_ppl"])


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (4, 20), (10, 10), (30, 20)])
def test_the_schedule_is_its_closed_form(warmup: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = WarmupCosineToEnd(optimizer, warmup)
    schedule.end_at(steps)
    for step in range(steps + 3):
        falling = 0.5 * (1 + math.cos(math.pi * step / steps)) if step < steps else 0.0
        expected = 0.3 * (step / warmup if step < warmup else falling)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        schedule.step()
    with pytest.raises(ValueError, match="`warmup_steps` must be 0 or more"):
        WarmupCosineToEnd(optimizer, -1)


# --- memory


def test_training_carries_the_memory_through_an_epoch() -> None:
    seen = Seen()
    module = task(penalty=JacobianPenalty(0.1))
    trainer(seen, max_epochs=2, limit_val_batches=2).fit(module, datamodule=data())
    assert [batch.first for batch in seen.batches] == 2 * [True, *6 * [False]]
    for before, batch in zip([None, *seen.memories], seen.batches, strict=False):
        assert batch.memory is None if batch.first else batch.memory is before
    assert all(not part.requires_grad and part.shape[:2] == (STREAMS, 5) for one in seen.memories for part in one)
    assert "val" not in module.memory and not dict(module.named_buffers())


def test_the_loss_leaves_the_memory_alone() -> None:
    seen = Seen()
    module = task()
    trainer(seen, max_steps=2, limit_val_batches=0).fit(module, datamodule=data())
    module.eval()
    kept = module.memory["train"]
    one, other = (module.loss(seen.batches[1])[0] for _ in range(2))
    assert torch.equal(one, other) and module.memory["train"] is kept
    assert not torch.equal(one, module.loss(seen.batches[1]._replace(memory=None))[0])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"val_check_interval": 2, "num_sanity_val_steps": 1}, id="validation"),
        pytest.param(
            {"callbacks": [EquilibriumMonitor(3, samples=4, estimate_in_evaluation=True)], "val_check_interval": 3},
            id="monitor",
        ),
    ],
)
def test_watching_changes_nothing(options: dict[str, Any]) -> None:
    """Validations in the middle of an epoch, and estimates on a few streams of a batch."""
    weights = []
    for given in ({"limit_val_batches": 0}, {"limit_val_batches": 2, **options}):
        module, watching = task(), trainer(*given.pop("callbacks", ()), max_steps=5, **given)
        watching.fit(module, datamodule=data())
        weights.append(torch.nn.utils.parameters_to_vector(module.parameters()))
    assert torch.equal(*weights)
    if "callbacks" in options:
        assert watching.callback_metrics["val_spectral_radius"] > 0
        assert watching.callback_metrics["val_gradient_cosine"].isfinite()


def test_every_evaluation_begins_anew() -> None:
    module, docs = task(), data()
    first, again = (trainer().validate(module, datamodule=docs, verbose=False) for _ in range(2))
    assert first == again
    losses = by_hand(module.net, docs.val_dataloader())
    assert first[0]["val_ppl"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)


# --- interrupted runs


class Save(pl.Callback):
    """Writes a checkpoint at a step, in one of Lightning's hooks."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.hook, self.step, self.path = hook, step, path
        setattr(self, hook, self.save)

    def save(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def state(module: LanguageModeling, running: pl.Trainer, path: Path) -> dict[str, Any]:
    running.save_checkpoint(path)
    whole = torch.load(path, weights_only=True)
    return {name: whole[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "rng_state", "memory")}


@pytest.mark.parametrize(
    ("hook", "step", "options"),
    [
        pytest.param("on_train_batch_end", 3, {"max_steps": 9}, id="after a batch"),
        pytest.param("on_train_batch_end", 10, {"max_epochs": 2}, id="after a batch of the second epoch"),
        pytest.param("on_validation_end", 3, {"max_steps": 9, "val_check_interval": 3}, id="after a validation"),
        pytest.param("on_train_epoch_end", 7, {"max_epochs": 2, "val_check_interval": 3}, id="after an epoch"),
        pytest.param("on_train_batch_end", 7, {"max_epochs": 2, "limit_train_batches": 5}, id="in a part of the text"),
        slow(
            "on_train_epoch_end",
            5,
            {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 0},
            id="after an epoch on a part of the text",
        ),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    hook: str, step: int, options: dict[str, Any], tmp_path: Path
) -> None:
    states, batches = [], []
    for ckpt in (None, tmp_path / "saved.ckpt"):
        module, seen = task(lr_scheduler=lambda optimizer: WarmupCosineToEnd(optimizer, 5)), Seen()
        save = [Save(hook, step, tmp_path / "saved.ckpt")] if ckpt is None else []
        running = trainer(seen, *save, **{"limit_val_batches": 2, **options})
        running.fit(module, datamodule=data(), ckpt_path=ckpt)
        states.append(state(module, running, tmp_path / "end.ckpt"))
        batches.append(seen.batches)
    assert_equal(*states)
    assert 0 < len(batches[1]) == len(batches[0]) - step
    for one, other in zip(batches[0][step:], batches[1], strict=True):
        assert torch.equal(one.tokens, other.tokens) and one.first == other.first


def test_a_checkpoint_from_the_middle_of_a_step_repeats_it(tmp_path: Path) -> None:
    """As `DivergenceGuard` writes them: the loss is known, the step not made."""
    seen, again = Seen(), Seen()
    save = Save("on_before_backward", 4, tmp_path / "saved.ckpt")
    trainer(seen, save, max_steps=5, limit_val_batches=0).fit(task(), datamodule=data())
    running = trainer(again, max_steps=5, limit_val_batches=0)
    running.fit(task(), datamodule=data(), ckpt_path=tmp_path / "saved.ckpt")
    (batch,) = again.batches
    assert torch.equal(batch.tokens, seen.batches[4].tokens)
    assert_equal(batch.memory, seen.batches[4].memory)


def test_other_streams_do_not_continue_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    saves = [Save("on_train_batch_end", 3, tmp_path / "3.ckpt"), Save("on_train_epoch_end", 7, tmp_path / "7.ckpt")]
    trainer(*saves, max_epochs=1, limit_val_batches=0).fit(task(), datamodule=data())
    for other, flag in (
        ({"batch_size": 8}, r"`batch_size` was 16 \(over all devices\), and is 8"),
        ({"segment_length": 9}, ""),
    ):
        with pytest.raises(DataError, match=f"continues on the same streams: {flag}"):
            trainer(max_epochs=1).fit(task(), datamodule=data(**other), ckpt_path=tmp_path / "3.ckpt")
    for streams in (8, 32):
        seen, options = Seen(), dict(max_steps=9, limit_val_batches=0)
        trainer(seen, **options).fit(task(), datamodule=data(batch_size=streams), ckpt_path=tmp_path / "7.ckpt")
        assert [len(batch.tokens) for batch in seen.batches] == 2 * [streams] and seen.batches[0].first


# --- what does not fit


@pytest.mark.parametrize("words", [99, 40])
def test_the_network_must_have_the_words_of_the_data(words: int) -> None:
    with pytest.raises(CombinationError) as refused:
        trainer().validate(task(words), datamodule=data())
    assert str(refused.value) == f"`vocab_size` of the network must be 60 for `PythonDocs`, got {words}."


def test_networks_and_data_without_words() -> None:
    with pytest.raises(CombinationError, match=r"needs a network of words, got `MDEQ`. Choose `net=DEQTr"):
        trainer().validate(LanguageModeling(MDEQ()), datamodule=data())
    with pytest.raises(CombinationError, match=r"takes a text, and `Digits` has images with a class each"):
        trainer().validate(task(), datamodule=Digits())


def test_a_checkpoint_of_other_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = trainer(max_steps=1, limit_val_batches=0)
    running.fit(task(), datamodule=data())
    running.save_checkpoint(tmp_path / "saved.ckpt")
    monkeypatch.setattr("pydoc_data.topics.topics", topics(seed=1))
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    for run in ("fit", "validate", "test", "predict"):
        with pytest.raises(
            DataError, match=r"another vocabulary: .*; here are 60 words of the .* Python 3.99.0. Use that"
        ):
            getattr(trainer(max_steps=2), run)(task(), datamodule=data(), ckpt_path=tmp_path / "saved.ckpt")


def test_other_data_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    """Of as many words. That none of the prompt is among them comes from that."""
    running = trainer(max_steps=1, limit_val_batches=0)
    running.fit(task(), datamodule=data())
    running.save_checkpoint(tmp_path / "saved.ckpt")
    words = " ".join(f"w{number}" for number in range(58))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{words} \n" * 20)
    for run in ("fit", "validate", "test", "predict"):
        other = WikiText2(str(tmp_path), batch_size=16, segment_length=9, prompt="ab")
        with pytest.raises(DataError, match=r"trained with 60 words of the doc.*; here are 60 words of WikiText2. Set"):
            getattr(trainer(max_steps=2), run)(task(), datamodule=other, ckpt_path=tmp_path / "saved.ckpt")
    LanguageModeling.load_from_checkpoint(tmp_path / "saved.ckpt", net=task().net)


@pytest.mark.parametrize("options", [{"continue_words": 0}, {"temperature": -0.5}])
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        task(**options)


# --- continued texts


def greedy(net: DEQTransformer, tokens: torch.Tensor, words: int) -> tuple[list[int], list[float]]:
    memory, ids, probabilities = None, [], []
    with torch.inference_mode():
        for _ in range(words):
            (hidden, memory), _ = net.eval()(Segment(tokens, memory))
            probability = net.vocabulary.log_prob(hidden)[0, -1].exp()
            tokens = probability[1:].argmax().add(1)[None, None]  # never <unk>
            ids.append(tokens.item())
            probabilities.append(probability[tokens.item()].item())
    return ids, probabilities


def test_predict_takes_the_most_probable_words_at_temperature_zero(capsys: pytest.CaptureFixture[str]) -> None:
    module, docs = task(temperature=0, continue_words=5), data(prompt="Ab ad ZEBRA ac")
    (table,) = trainer().predict(module, datamodule=docs)
    ((tokens, *_),) = docs.predict_dataloader()
    ids, probabilities = greedy(module.net, tokens, 5)
    words = docs.vocabulary.words
    assert table["word"].tolist() == [words[number] for number in ids]
    assert table["probability"].tolist() == pytest.approx(probabilities, rel=1e-4)
    assert len(table["solver_steps"]) == len(table["solver_residual"]) == 5
    assert docs.vocabulary.text(tokens[0].tolist() + ids) in capsys.readouterr().out
    assert tokens[0].tolist() == [1, *(words.index(word) for word in ("ab", "ad")), 0, words.index("ac")]


def test_a_long_prompt_is_read_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deq_lightning.tasks.language.LONGEST", 4)
    module, tokens = task(continue_words=1, temperature=0.0).eval(), torch.arange(2, 13)[None]
    with torch.no_grad():
        ((word, _, _),) = module._continue(tokens)
        memory = None
        for part in (tokens[:, :4], tokens[:, 4:7], tokens[:, 7:]):
            output, _ = module.net(Segment(part, memory))
            memory = output.memory
    assert word.item() == module._draw(module.net.vocabulary.log_prob(output.hidden[:, -1:])[:, 0]).item()


def test_task_and_data_have_the_same_unknown() -> None:
    assert UNKNOWN_ID == UNKNOWN_IN_DATA == SPECIAL.index("<unk>")


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 0.7, 5.0])
def test_draws_follow_the_distribution_without_the_unknown(temperature: float) -> None:
    module = task(temperature=temperature)
    probability = torch.tensor([0.5, 0.1, 0.3, 0.1])
    torch.manual_seed(0)
    drawn = module._draw(probability.log().expand(20_000, 4)).flatten()
    shares = drawn.bincount(minlength=4) / len(drawn)
    known = torch.tensor([0.0, 0.1, 0.3, 0.1])
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0]) if temperature < 0.1 else known ** (1 / temperature)
    assert shares[0] == 0
    assert torch.allclose(shares, expected / expected.sum(), atol=0.015)


# --- the command line

SMALL = [
    *("--config", "pydocs_upg", *QUIET, "--data.batch_size", "16", "--data.segment_length", "57"),
    *("--data.vocab_size", "60", "--trainer.log_every_n_steps", "1", "--test_after_fit", "false"),
    *("--model.net.vocab_size", "60", "--model.net.cutoffs", "[15, 30]", "--model.net.width", "16"),
    *("--model.net.inner_width", "16", "--model.net.solver.max_steps", "5", "--gradient.pretrain_steps", "2"),
    *("--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "2", "--data.eval_batch_size", "8"),
    *("--trainer.max_epochs", "-1", "--trainer.max_steps", "6", "--trainer.val_check_interval", "2"),
]


@pytest.mark.slow
def test_a_run_continues_in_the_middle_of_an_epoch_and_then_a_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", *SMALL, "--last_checkpoint.every_n_train_steps", "4", "--name", "whole"]
    whole = main(command)
    assert "best checkpoint: checkpoints/whole/best.ckpt (val_ppl " in capsys.readouterr().out
    path = "checkpoints/whole/last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4
    torch.manual_seed(123)
    parts = main(["fit", "--ckpt_path", path])
    assert_equal(*(dict(cli.model.state_dict()) for cli in (whole, parts)))
    assert parts.model.memory["train"].z.equal(whole.model.memory["train"].z)
    capsys.readouterr()
    predict = [
        "predict",
        "--ckpt_path",
        path,
        "--trainer.enable_progress_bar",
        "false",
        "--data.prompt",
        "ab ac zebra",
    ]
    main([*predict, "--model.continue_words", "7", "--model.temperature", "0.5"])
    out = capsys.readouterr().out
    rows = list(csv.DictReader(Path("checkpoints/whole/predictions.csv").open()))
    assert list(rows[0]) == ["index", "word", "probability", "solver_steps", "solver_residual"]
    assert [row["index"] for row in rows] == [str(number) for number in range(7)]
    assert all(row["word"] != "<unk>" for row in rows)
    assert "7 predictions: " in out and "ab ac <unk>" in out
    with pytest.raises(SystemExit, match="2"):
        main([*predict[:-1], "zebra zebra"])
    assert "error: no word of the prompt 'zebra zebra' is in the vocabulary." in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_continuation_leaves_the_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *SMALL, "--last_checkpoint.every_n_train_steps", "4", "--name", "whole"])
    config, path = Path("checkpoints/whole/config.yaml"), "checkpoints/whole/last.ckpt"
    before = config.read_text()
    for refused in (["--data.batch_size", "8"], ["--data.vocab_size", "50"]):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--ckpt_path", path, *refused])
        assert config.read_text() == before
    assert main(["fit", "--ckpt_path", path]).trainer.global_step == 6
