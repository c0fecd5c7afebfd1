"""The average of the weights is what is evaluated and saved; training goes on with the weights themselves."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from support.runs import assert_equal, digits_task, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import EMA, UPG, Digits, JacobianPenalty
from deq_lightning.configured import CombinationError, RunError

DECAY = 0.75


class Tiny(pl.LightningModule):
    """A linear map with batch normalisation, tied weights, dropout and a buffer that is no statistic."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.tied = self.last
        self.register_buffer("alpha", torch.ones(()))
        self.seen: list[Tensor] = []  # the first weight at every validation batch

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(nn.functional.dropout(self.norm(self.first(x)), 0.3, self.training))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen.append(self.first.weight.detach().clone())
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_callbacks(self) -> list[pl.Callback]:
        from deq_lightning.tasks.random_state import RandomState

        return [RandomState()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Steps(pl.Callback):
    """Keeps the weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: value.detach().clone() for name, value in task.named_parameters()})

    def average(self, steps: int | None = None) -> dict[str, Tensor]:
        first, *others = self.weights[:steps]
        average = {name: value.double() for name, value in first.items()}
        for step in others:
            average = {name: DECAY * average[name] + (1 - DECAY) * step[name].double() for name in average}
        return average


def loader() -> DataLoader:
    """Return four batches of the same samples, so that a run may go on from the middle of an epoch."""
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, generator=draws), torch.randint(0, 2, (8,), generator=draws)
    return DataLoader(TensorDataset(x.repeat(4, 1), y.repeat(4)), 8)


def fit(folder: Path, *callbacks: pl.Callback, start: Path | None = None, **options: Any) -> tuple[pl.Trainer, Tiny]:
    options = {"max_steps": 8, "num_sanity_val_steps": 0, **options}
    run, module = trainer(folder, *callbacks, **options), Tiny()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
        run.fit(module, loader(), loader(), ckpt_path=start)
    return run, module


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Compare the weights of which the second holds more precise ones."""
    return all(torch.allclose(a[name].double(), value, rtol=1e-5, atol=1e-7) for name, value in b.items())


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def keep(folder: Path, name: str, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, name, enable_version_counter=False, **options)


def test_durable_the_average_is_validated_and_saved_and_the_weights_beside_it(folder: Path) -> None:
    steps, best = Steps(), keep(folder, "best", monitor="val_loss", save_top_k=-1)
    _, module = fit(folder, steps, EMA(DECAY), best, max_steps=4)
    saved, expected = load(folder / "best.ckpt"), steps.average()
    assert close(saved["state_dict"], expected)
    assert torch.equal(saved["state_dict"]["tied.weight"], saved["state_dict"]["last.weight"])
    for name, value in steps.weights[-1].items():
        assert torch.equal(saved["current_model_state"][name], value)
    assert not torch.equal(saved["state_dict"]["first.weight"], saved["current_model_state"]["first.weight"])
    assert len(module.seen) == 2 and all(torch.equal(one, saved["state_dict"]["first.weight"]) for one in module.seen)
    assert_equal(dict(module.state_dict()), dict(saved["state_dict"]))  # training has ended with it
    assert saved["averaging_state"]["n_averaged"] == 4


def test_durable_training_and_its_penalty_see_the_weights_themselves(folder: Path) -> None:
    """The same steps as without an average, through validations, the sanity check and draws of dropout."""
    runs = []
    for callbacks in ([], [EMA(DECAY)]):
        task, steps = digits_task(), Steps()
        task.penalty = JacobianPenalty(0.5)
        options = {"max_steps": 6, "val_check_interval": 2, "num_sanity_val_steps": 2}
        trainer(folder, UPG(), steps, *callbacks, **options).fit(task, Digits(batch_size=16))
        runs.append(steps.weights)
    assert len(runs[0]) == 6
    assert_equal(*runs)


def test_durable_nothing_is_swapped_before_the_first_update(folder: Path) -> None:
    initial = Tiny().first.weight.detach()
    _, module = fit(folder, EMA(DECAY), num_sanity_val_steps=2, val_check_interval=1, accumulate_grad_batches=3)
    assert all(torch.equal(one, initial) for one in module.seen[:6])  # the sanity check, and two batches without a step
    assert not torch.equal(module.seen[6], initial)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("at", ["middle", "end"])
def test_durable_a_resumed_run_equals_the_uninterrupted_one(at: str, accumulated: int, folder: Path) -> None:
    options = {"accumulate_grad_batches": accumulated, "max_steps": -1, "max_epochs": 3, "val_check_interval": 2}

    def last(name: str) -> ModelCheckpoint:
        return keep(folder / name, "last", **({"every_n_train_steps": 1} if at == "middle" else {}))

    fit(folder, EMA(DECAY), last("whole"), **options)
    stopped = {"max_steps": 6 // accumulated} if at == "middle" else {"max_epochs": 2}
    fit(folder, EMA(DECAY), last("parts"), **{**options, **stopped})
    begun = load(folder / "parts/last.ckpt")
    assert begun["global_step"] == (6 if at == "middle" else 8) // accumulated
    torch.manual_seed(5)
    fit(folder, EMA(DECAY), last("parts"), start=folder / "parts/last.ckpt", **options)
    whole, parts = load(folder / "whole/last.ckpt"), load(folder / "parts/last.ckpt")
    assert whole["global_step"] == 12 // accumulated
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "rng_state"):
        assert_equal(whole[part], parts[part])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("weights_only", [False, True])
def test_durable_a_run_that_stops_in_a_validation_holds_and_saves_both(
    error: type[BaseException], weights_only: bool, folder: Path
) -> None:
    class Stop(pl.Callback):
        def on_validation_batch_end(self, trainer: pl.Trainer, module: Tiny, *args: Any) -> None:
            trainer.save_checkpoint(folder / "during.ckpt", weights_only)
            raise error

    steps = Steps()
    last = keep(folder, "last", save_on_exception=True, save_weights_only=weights_only)
    run, module = trainer(folder, steps, EMA(DECAY), Stop(), last, max_steps=4, num_sanity_val_steps=0), Tiny()
    with pytest.raises((error, SystemExit)):
        run.fit(module, loader(), loader())
    assert_equal(dict(module.named_parameters()), steps.weights[-1])
    for name in ("during", "last"):
        saved = load(folder / f"{name}.ckpt")
        assert close(saved["state_dict"], steps.average())
        if not weights_only:
            assert all(
                torch.equal(saved["current_model_state"][key], value) for key, value in steps.weights[-1].items()
            )


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_validation_epoch_end"])
def test_durable_a_run_that_stops_within_the_exchange_holds_and_saves_both(hook: str, folder: Path) -> None:
    class Torn(EMA):
        def _copy_average_to_current(self, module: pl.LightningModule) -> None:
            if hook == "on_validation_epoch_end":
                return super()._copy_average_to_current(module)
            module.first.weight.data.copy_(next(self._average_model.parameters()))
            raise KeyboardInterrupt

    class Tear(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, module: Tiny) -> None:
            module.first.weight.data.zero_()
            raise KeyboardInterrupt

    steps, last = Steps(), keep(folder, "last", save_on_exception=True)
    tear = [Tear()] if hook == "on_validation_epoch_end" else []
    run, module = trainer(folder, *tear, steps, Torn(DECAY), last, max_steps=4, num_sanity_val_steps=0), Tiny()
    with pytest.raises(SystemExit):
        run.fit(module, loader(), loader())
    assert_equal(dict(module.named_parameters()), steps.weights[-1])
    saved = load(folder / "last.ckpt")
    assert close(saved["state_dict"], steps.average())
    assert all(torch.equal(saved["current_model_state"][name], value) for name, value in steps.weights[-1].items())


def test_durable_checkpoints_of_the_weights_alone_have_the_average(folder: Path) -> None:
    steps = Steps()
    each = keep(folder, "{step}", every_n_train_steps=3, save_top_k=-1, save_weights_only=True)
    run, _ = fit(folder, steps, EMA(DECAY), each, keep(folder, "best", save_weights_only=True), max_steps=4)
    run.save_checkpoint(folder / "after.ckpt", weights_only=True)
    for name, step in {"step=3": 3, "best": 4, "after": 4}.items():
        assert close(load(folder / f"{name}.ckpt")["state_dict"], steps.average(step)), name


def test_durable_buffers_are_those_of_the_model(folder: Path) -> None:
    """Also where they change after the update."""

    class Tune(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Tiny, *args: Any) -> None:
            module.alpha.fill_(trainer.global_step / 10)

        def on_validation_batch_start(self, trainer: pl.Trainer, module: Tiny, *args: Any) -> None:
            assert module.alpha == trainer.global_step / 10

    _, module = fit(folder, EMA(DECAY), Tune(), keep(folder, "last"), max_steps=4)
    saved = load(folder / "last.ckpt")
    for state in (saved["state_dict"], saved["current_model_state"]):
        assert state["alpha"] == torch.tensor(0.4) and state["norm.num_batches_tracked"] == 4
        assert state["norm.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(state["norm.running_mean"], module.norm.running_mean)


def test_durable_what_is_saved_after_the_end_continues_from_the_weights_themselves(folder: Path) -> None:
    run, _ = fit(folder, EMA(DECAY), max_steps=4)
    run.save_checkpoint(folder / "after.ckpt")
    begun, whole, parts = Steps(), Steps(), Steps()
    fit(folder, EMA(DECAY), whole)
    assert all(
        torch.equal(load(folder / "after.ckpt")["current_model_state"][name], value)
        for name, value in whole.weights[3].items()
    )
    begun.weights, parts.weights = [], [{}] * 4
    fit(folder, EMA(DECAY), parts, start=folder / "after.ckpt")
    assert_equal(whole.weights[4:], parts.weights[4:])


def test_durable_a_callback_that_saves_before_the_update_saves_the_step_all_the_same(folder: Path) -> None:
    class Early(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.save_checkpoint(folder / "early.ckpt")

    steps = Steps()
    fit(folder, Early(), steps, EMA(DECAY), max_steps=3)
    assert close(load(folder / "early.ckpt")["state_dict"], steps.average())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_durable_a_checkpoint_without_an_average_starts_one(accumulated: int, folder: Path) -> None:
    fit(folder, keep(folder, "last"), max_steps=4, max_epochs=10)
    steps = Steps()
    steps.weights = [{}] * 4
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _, module = fit(
            folder, steps, EMA(DECAY), start=folder / "last.ckpt", max_steps=7, accumulate_grad_batches=accumulated
        )
    assert not [one for one in seen if "verag" in str(one.message)]
    steps.weights = steps.weights[4:]
    assert len(steps.weights) == 3 and close(dict(module.named_parameters()), steps.average())


@pytest.mark.parametrize("present", [False, True])
def test_durable_a_checkpoint_is_evaluated_with_the_average_and_without_warnings(present: bool, folder: Path) -> None:
    fit(folder, EMA(DECAY), keep(folder, "last"), max_steps=4)
    path, plain = folder / "last.ckpt", Tiny()
    plain.load_state_dict(load(path)["state_dict"])
    x, y = next(iter(loader()))
    with torch.no_grad():
        answer = plain.eval()(x)
    run = trainer(folder, keep(folder, "last"), *([EMA(DECAY)] if present else []))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        (validated,) = run.validate(Tiny(), loader(), ckpt_path=path, verbose=False)
        (tested,) = run.test(Tiny(), loader(), ckpt_path=path, verbose=False)
        predicted = run.predict(Tiny(), loader(), ckpt_path=path)
    assert validated["val_loss"] == tested["test_loss"] == pytest.approx(nn.functional.cross_entropy(answer, y).item())
    assert all(torch.allclose(one, answer) for one in predicted)
    assert not [one for one in seen if "verag" in str(one.message) or "callbacks" in str(one.message)]


def test_durable_a_trainer_that_has_fitted_tests_what_it_is_given(folder: Path) -> None:
    run, module = fit(folder, EMA(DECAY), keep(folder, "best", monitor="val_loss"), val_check_interval=1)
    best = dict(load(folder / "best.ckpt")["state_dict"])
    (tested,) = run.test(module, loader(), ckpt_path=folder / "best.ckpt", verbose=False)
    (again,) = trainer(folder).test(Tiny(), loader(), ckpt_path=folder / "best.ckpt", verbose=False)
    assert tested == again
    assert_equal(dict(module.state_dict()), best)
    (validated,) = run.validate(module, loader(), verbose=False)
    assert validated["val_loss"] == pytest.approx(tested["test_loss"])
    run.save_checkpoint(folder / "other.ckpt")  # of what was loaded, not half of the run
    assert "current_model_state" not in load(folder / "other.ckpt")
    assert_equal(dict(load(folder / "other.ckpt")["state_dict"]), best)


@pytest.mark.parametrize("ours_first", [False, True])
def test_an_average_goes_on_from_one_of_lightnings_own_and_the_other_way(ours_first: bool, folder: Path) -> None:
    theirs = EMAWeightAveraging(use_buffers=False, decay=DECAY)
    before, after = (EMA(DECAY), theirs) if ours_first else (theirs, EMA(DECAY))
    whole, parts = Steps(), Steps()
    fit(folder, before, keep(folder, "last"), max_steps=4)
    parts.weights = [{}] * 4
    _, module = fit(folder, parts, after, start=folder / "last.ckpt")
    fit(folder, whole)
    assert_equal(whole.weights[4:], parts.weights[4:])
    assert close(dict(module.named_parameters()), whole.average())


def test_weights_in_half_precision_are_refused(folder: Path) -> None:
    with pytest.raises(CombinationError, match=r"^An average needs weights of 32 bits or more, got torch.bfloat16, wh"):
        fit(folder, EMA(DECAY), precision="bf16-true")


def test_the_average_has_the_precision_of_the_weights(folder: Path) -> None:
    steps, module = Steps(), Tiny()
    run = trainer(folder, steps, EMA(DECAY), max_steps=4, precision="64-true", num_sanity_val_steps=0)
    run.fit(module, loader(), loader())
    assert module.first.weight.dtype == torch.float64
    for name, value in steps.average().items():
        assert torch.allclose(dict(module.named_parameters())[name], value, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "damage", [{"averaging_state": {}}, {"current_model_state": {}}, {"current_model_state": None}]
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(damage: dict[str, Any], folder: Path) -> None:
    fit(folder, EMA(DECAY), keep(folder, "last"), max_steps=4)
    torch.save({**load(folder / "last.ckpt"), **damage}, folder / "last.ckpt")
    with pytest.raises(RunError, match=r"must be those of this model, got others\. Use another checkpoint"):
        fit(folder, EMA(DECAY), start=folder / "last.ckpt")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_decays_out_of_range_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"^`decay` must be in \(0, 1\), got {decay}\."):
        EMA(decay)
