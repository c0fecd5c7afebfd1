"""Labels at every position: figures, losses, segments with a carried state, several test sets."""

import csv
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from support.runs import assert_equal
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import (
    JFB,
    DataModule,
    DensePrediction,
    EquilibriumMonitor,
    EquilibriumReasoner,
    FixedPointIteration,
    PredictionWriter,
    RecursiveReasoner,
)
from deq_lightning.configured import CombinationError, RunError
from deq_lightning.samples import UNLABELLED
from deq_lightning.tasks.dense import stablemax
from deq_lightning.tasks.segments import Segments


class Copying(DataModule):
    """Tokens 0 to 3 whose labels are the tokens in reverse, in two test sets."""

    in_memory = True
    test_names = ("short", "long")

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(1)

        def puzzles(count: int) -> TensorDataset:
            x = torch.randint(4, (count, 6), generator=generator)
            return TensorDataset(x, x.flip(1))

        self.train_set, self.val_set = puzzles(22), puzzles(8)
        self.tests = [puzzles(10), puzzles(6)]

    def test_dataloader(self) -> list[DataLoader]:
        return [DataLoader(one, batch_size=4) for one in self.tests]

    def predict_dataloader(self) -> list[DataLoader]:
        return self.test_dataloader()


def task(**options: object) -> DensePrediction:
    torch.manual_seed(0)
    solver = FixedPointIteration(1, rtol=0, keep="last")
    net = RecursiveReasoner(4, 4, 6, width=8, multiple=1, layers=1, inner_cycles=1, solver=solver)
    net.gradient = JFB()
    return DensePrediction(net, **options)


def trainer(folder: Path, *callbacks: pl.Callback, **options: object) -> pl.Trainer:
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


# --- figures and losses ---


def test_a_sample_counts_where_all_its_labels_are_right() -> None:
    y = torch.tensor([[0, 1, UNLABELLED], [1, 1, 0], [UNLABELLED, 0, 0]])
    logits = F.one_hot(torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]]), 2).transpose(1, 2).float()
    one = task()
    metrics = one.test_metrics
    metrics.update(one.decide(logits), y)
    values = metrics.compute()
    assert values["test_exact_acc"].item() == pytest.approx(2 / 3) and values["test_acc"].item() == pytest.approx(6 / 7)
    assert (one.monitor, one.mode) == ("val_exact_acc", "max")
    columns = one.columns(logits, y)
    assert columns["exact"].tolist() == [1, 0, 1] and columns["answer"].tolist() == ["0 1 1", "1 0 0", "1 0 0"]
    assert columns["accuracy"].tolist() == pytest.approx([1, 2 / 3, 1])


@pytest.mark.parametrize("criterion", ["cross_entropy", "stablemax"])
def test_the_loss_is_a_mean_of_means(criterion: str) -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(2, 3, 4).double() * 3, torch.tensor([[0, 1, UNLABELLED, 2], [2, *[UNLABELLED] * 3]])

    def score(x: float) -> float:
        return math.exp(x) if criterion == "cross_entropy" else x + 1 if x >= 0 else 1 / (1 - x)

    def of(sample: int, place: int) -> float:
        scores = [score(x) for x in logits[sample, :, place].tolist()]
        return -math.log(scores[y[sample, place]] / sum(scores))

    expected = ((of(0, 0) + of(0, 1) + of(0, 3)) / 3 + of(1, 0)) / 2
    assert task(criterion=criterion).criterion(logits, y).item() == pytest.approx(expected, rel=1e-12)


def test_stablemax_has_a_gradient_everywhere() -> None:
    logits = torch.tensor([[0.0, 1.0, -3.0, 60.0]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stablemax(x[:, :, None] + 1e-4, torch.tensor([[2]])), logits)


# --- segments ---


def test_rows_stay_and_leave() -> None:
    segments = Segments(3, explore=0.0)
    seen = []
    for step in range(5):
        x = torch.full((2, 1), 10 * step)
        x, _, z = segments.enter(x, x, lambda new: torch.zeros(len(new), 1))
        seen.append((x[:, 0].tolist(), z[:, 0].tolist()))
        segments.leave(z + 1, torch.tensor([False, step == 1]))
    assert seen == [([0, 0], [0, 0]), ([0, 0], [1, 1]), ([0, 20], [2, 0]), ([30, 20], [0, 1]), ([30, 20], [1, 2])]


def test_what_is_told_to_stop_may_have_to_stay() -> None:
    """With as many segments as are drawn, from 2 to 4 and anew each time."""
    torch.manual_seed(0)
    segments = Segments(4, explore=1.0)
    x = torch.zeros(9000, 1)
    stayed = torch.ones(9000, dtype=torch.bool)
    shares = []
    for _ in range(4):
        segments.enter(x, x, torch.zeros_like)
        segments.leave(x, torch.ones(9000, dtype=torch.bool))
        done = segments.places["done"]
        shares.append((done & stayed).sum().item() / stayed.sum().item())
        stayed &= ~done
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.03)


def test_batches_of_other_sizes() -> None:
    segments = Segments(2, explore=0.0)

    def step(values: list[int]) -> list[int]:
        x = torch.tensor(values)[:, None]
        rows, _, z = segments.enter(x, x, lambda new: new.float())
        segments.leave(z)
        return rows[:, 0].tolist()

    assert step([1, 2, 3]) == [1, 2, 3] and step([4, 5]) == [1, 2]
    assert step([6, 7, 8]) == [6, 7, 3] and step([9, 10, 11, 12]) == [6, 7, 11, 12]


def test_a_segment_goes_on_from_the_last_one() -> None:
    one = task(segments=2)
    one.train()
    x = torch.randint(4, (3, 6))
    loss, equilibria = one.loss((x, x.flip(1)))
    second, _ = one.loss((torch.zeros_like(x), torch.zeros_like(x)))  # has no place
    logits, _ = one.net(x, start=tuple(part.detach() for part in equilibria[0].z))
    assert torch.equal(second, one.criterion(logits, x.flip(1))) and second != loss
    third, _ = one.loss((x.flip(1), x))
    assert torch.equal(third, one.criterion(one.net(x.flip(1))[0], x))


def test_evaluation_takes_all_segments_and_lets_nothing_in() -> None:
    one = task(segments=3, eval_segments=2).eval()
    x = torch.randint(4, (3, 6))
    logits, _, _ = one.answer((x, x), "val")
    start = None
    for _ in range(2):
        expected, (equilibrium,) = one.net(x, start=start)
        start = tuple(part.detach() for part in equilibrium.z)
    assert torch.equal(logits, expected)
    one.loss((x, x))
    assert one.carry.places is None


def test_the_halting_loss() -> None:
    one = task(segments=4, halting=True, halting_weight=0.25, explore=0.0)
    one.train()
    torch.nn.init.constant_(one.net.halt.bias, 1.5)
    x = torch.randint(4, (3, 6))
    loss, equilibria = one.loss((x, x))
    logits = one.net.readout(equilibria[0].z)
    assert not (logits.argmax(1) == x).all(1).any()
    assert loss.item() == pytest.approx((one.criterion(logits, x) + 0.25 * math.log1p(math.exp(1.5))).item(), rel=1e-6)
    assert one.carry.places["done"].all()  # all of them were said to be solved


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, accumulate: int) -> None:
    def fit(name: str, start: str | None, steps: int) -> dict[str, object]:
        last = ModelCheckpoint(folder / name, "last", every_n_train_steps=steps)
        options = dict(max_steps=steps, accumulate_grad_batches=accumulate, limit_val_batches=0)
        one = task(segments=5, halting=True, explore=0.5, optimizer=lambda p: torch.optim.AdamW(p, 1e-2))
        trainer(folder, last, **options).fit(one, Copying(batch_size=8), ckpt_path=start)
        return torch.load(folder / name / "last.ckpt", weights_only=True)

    whole = fit("whole", None, 9)
    fit("half", None, 4)
    parts = fit("parts", str(folder / "half/last.ckpt"), 9)
    for key in ("state_dict", "optimizer_states", "segments", "rng_state"):
        assert_equal(whole[key], parts[key])
    assert whole["segments"][0]["count"].max() > 0


def test_a_damaged_carry_is_one_line(folder: Path) -> None:
    last = ModelCheckpoint(folder, "last", every_n_train_steps=2)
    trainer(folder, last, max_steps=2, limit_val_batches=0).fit(task(segments=2), Copying(batch_size=8))
    path = folder / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "segments": [{"x": 1}]}, path)
    with pytest.raises(RunError, match=r"^`segments` of the checkpoint must be the samples under way"):
        trainer(folder, max_steps=3, limit_val_batches=0).fit(task(segments=2), Copying(batch_size=8), ckpt_path=path)


# --- several test sets ---


def test_every_test_set_has_its_own_figures(folder: Path) -> None:
    one, data = task(), Copying(batch_size=8)
    run = trainer(folder, EquilibriumMonitor(0))
    results = run.test(one, data, verbose=False)
    assert len(results) == 2
    for name, result, part in zip(("short", "long"), results, data.tests, strict=True):
        x, y = part.tensors
        with torch.no_grad():
            logits = one.eval().net(x)[0]
        assert result[f"test_acc/{name}"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
        assert result[f"test_loss/{name}"] == pytest.approx(one.criterion(logits, y).item(), rel=1e-5)
        assert f"test_solver_steps/{name}" in result and f"test_solver_converged/{name}" in result
        assert all(figure.endswith(f"/{name}") for figure in result)


def test_predictions_say_their_set(folder: Path) -> None:
    trainer(folder, PredictionWriter("table.csv")).predict(task(), Copying(), return_predictions=False)
    rows = list(csv.DictReader(Path("table.csv").open()))
    assert [(row["set"], row["index"]) for row in rows[8:12]] == [
        ("short", "8"),
        ("short", "9"),
        ("long", "0"),
        ("long", "1"),
    ]
    assert len(rows[0]["answer"].split()) == 6


# --- what does not go together ---


def test_what_cannot_be_is_said() -> None:
    net = EquilibriumReasoner(width=8)
    with pytest.raises(CombinationError, match=r"^`halting` needs a model that has it, such as `RecursiveReasoner`"):
        DensePrediction(net, halting=True)
    with pytest.raises(ValueError, match=r"^`segments` must be 1 or more, got 0"):
        DensePrediction(net, segments=0)
