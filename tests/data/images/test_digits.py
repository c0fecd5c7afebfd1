import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from support.marks import slow
from support.runs import TINY, digits_task
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from deq_lightning.cli import main
from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.images.digits import Digits
from deq_lightning.data.order import EpochShuffle, derive_seed


def digits(**arguments: object) -> Digits:
    data = Digits(**arguments)
    data.setup()
    return data


def images(dataset: object) -> Tensor:
    return dataset.tensors[0]


def labels(dataset: object) -> Tensor:
    return dataset.tensors[1]


def order(loader: DataLoader) -> Tensor:
    return torch.cat([batch[0].flatten(1) for batch in loader])


def test_sizes_shapes_and_types() -> None:
    data = digits()
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [1167, 270, 360]
    x, y = data.train_set[0]
    assert x.shape == (1, 8, 8) and x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_splits_are_a_partition_of_the_whole() -> None:
    data = digits()
    pieces = torch.cat([images(s) for s in (data.train_set, data.val_set, data.test_set)])
    assert len(pieces.flatten(1).unique(dim=0)) == 1797  # the 1,797 digits are all different


def test_every_split_keeps_the_class_proportions() -> None:
    data = digits()
    every = [labels(s).bincount() for s in (data.train_set, data.val_set, data.test_set)]
    whole = sum(every)
    for counts in every:
        assert torch.all((counts - whole * counts.sum() / 1797).abs() <= 1)


def test_seed_fixes_the_splits() -> None:
    assert torch.equal(images(digits(seed=3).train_set), images(digits(seed=3).train_set))
    assert not torch.equal(labels(digits(seed=3).test_set), labels(digits(seed=4).test_set))


def test_training_pixels_are_standardised() -> None:
    data = digits()
    train = images(data.train_set)
    assert train.mean().abs() < 1e-5
    assert (train.std() - 1).abs() < 1e-5
    assert images(data.test_set).mean().abs() > 1e-4  # not with their own statistics


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = digits().train_dataloader()
    torch.rand(7)
    second = digits().train_dataloader()
    assert torch.equal(order(first), order(first))
    assert torch.equal(order(first), order(second))
    second.sampler.set_epoch(1)
    assert not torch.equal(order(first), order(second))
    assert torch.equal(order(first).sort(dim=0).values, order(second).sort(dim=0).values)


def test_neighbouring_seeds_do_not_share_orders() -> None:
    one, two = EpochShuffle(50, seed=0), EpochShuffle(50, seed=1)
    one.set_epoch(1)
    assert list(one) != list(two)
    assert derive_seed(0, 1) != derive_seed(1, 0)


def test_iterating_leaves_the_global_stream_alone() -> None:
    data = digits()
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaders_keep_every_image() -> None:
    data = digits(batch_size=100, eval_batch_size=50)
    assert [len(x) for x, _ in data.train_dataloader()] == [100] * 11 + [67]
    assert [len(x) for x, _ in data.val_dataloader()] == [50] * 5 + [20]
    assert torch.equal(order(data.predict_dataloader()), images(data.test_set).flatten(1))


def test_no_workers_by_default_and_persistent_ones_on_request() -> None:
    assert digits().train_dataloader().num_workers == 0
    loader = digits(num_workers=1).train_dataloader()
    assert loader.num_workers == 1 and loader.persistent_workers
    assert loader.pin_memory == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be 1 or more, got 0."),
        ({"eval_batch_size": 0}, "`eval_batch_size` must be 1 or more, got 0."),
        ({"num_workers": -1}, "`num_workers` must be 0 or more, got -1."),
        ({"seed": -1}, "`seed` must be 0 or more, got -1."),
        ({"val_size": 1e-9}, "`val_size` must be 10 or more, got 1. Every class has one."),
        ({"test_size": 0.005}, "`test_size` must be 10 or more, got 9. Every class has one."),
        ({"val_size": 0.0}, r"`val_size` must be in \(0, 1\), got 0.0."),
        ({"test_size": 1.5}, r"`test_size` must be in \(0, 1\), got 1.5."),
        ({"val_size": 9}, "`val_size` must be 10 or more, got 9. A share is a number in"),
        ({"val_size": 0.5, "test_size": 0.5}, "must leave 10 of the 1797 images to train on, got 0.5 . 0.5"),
        ({"val_size": 1000, "test_size": 788}, "must leave 10 of the 1797 images to train on, got 1000 . 788"),
        ({"val_size": 0.1, "val_fraction": 0.1}, "`val_fraction` is the old name of `val_size`. Leave it out."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ({"val_size": 100, "test_size": 200}, [1497, 100, 200]),
        ({"val_size": 0.1, "test_size": 200}, [1417, 180, 200]),
        ({"val_size": 100, "test_size": 0.2}, [1337, 100, 360]),
    ],
)
def test_sizes_are_numbers_or_shares(sizes: dict[str, float], counts: list[int]) -> None:
    data = Digits(**sizes)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == counts


def test_old_names_of_the_sizes() -> None:
    old, new = Digits(val_fraction=0.2, test_fraction=0.3), Digits(val_size=0.2, test_size=0.3)
    assert (old.val_size, old.test_size) == (new.val_size, new.test_size) == (0.2, 0.3)


def test_a_loader_before_setup_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"`Digits.train_set` is empty. Call `setup\(\)`"):
        Digits().train_dataloader()


def test_the_error_survives_pickling() -> None:  # it crosses process boundaries in multi-device runs
    assert str(pickle.loads(pickle.dumps(DatasetNotFoundError("a line")))) == "a line"


class Recorder(BoringModel):
    """Writes down the batches of every epoch and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 2)
        self.seen: dict[int, list[float]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.setdefault(self.current_epoch, []).append(batch[0][:, :, :4].double().sum().item())
        return self.layer(batch[0].flatten(1)).sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        del batch, batch_idx


def fit(folder: Path, epochs: int, data: Digits, at_epoch_end: bool = True, resume: str | None = None) -> Recorder:
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=at_epoch_end),
    )
    trainer.fit(model, data, ckpt_path=resume)
    return model


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("at_epoch_end", [True, False], ids=["saved after the epoch", "saved after validation"])
def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, num_workers: int, at_epoch_end: bool) -> None:
    arguments = {"num_workers": num_workers, "batch_size": 400}
    whole = fit(tmp_path / "whole", 3, Digits(**arguments)).seen
    assert sorted(whole) == [0, 1, 2] and whole[0] != whole[1] != whole[2]
    fit(tmp_path / "part", 1, Digits(**arguments), at_epoch_end)
    rest = fit(tmp_path / "part", 3, Digits(**arguments), resume=str(tmp_path / "part" / "last.ckpt")).seen
    assert rest == {epoch: whole[epoch] for epoch in (1, 2)}


@pytest.mark.parametrize("num_workers", [slow(0), 1])
def test_a_run_goes_on_within_an_epoch(tmp_path: Path, num_workers: int) -> None:
    """With shuffling and random transforms, in the batch after the last one that was trained on."""

    class Batches(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
            del trainer, pl_module
            self.seen.append(batch[0])

    def fit(steps: int, resume: str | None = None) -> list[Tensor]:
        batches, last = Batches(), ModelCheckpoint(tmp_path, str(steps), every_n_train_steps=steps)
        options = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)
        trainer = pl.Trainer(max_steps=steps, callbacks=[batches, last], **options)
        trainer.fit(digits_task(), Digits(batch_size=400, num_workers=num_workers), ckpt_path=resume)
        return batches.seen

    whole = fit(8)
    assert [len(batch) for batch in whole[:4]] == [400, 400, 367, 400]
    first = fit(5)
    rest = fit(8, str(tmp_path / "5.ckpt"))
    assert all(torch.equal(*pair) for pair in zip([*first, *rest], whole, strict=True))


def test_no_advice_to_use_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    connector = "pytorch_lightning.trainer.connectors.data_connector"
    monkeypatch.setattr(f"{connector}.suggested_max_num_workers", lambda devices: 8)  # a machine with many cores
    main(["fit", *TINY, "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1"])
    assert not [warning for warning in recwarn if "many workers" in str(warning.message)]


class ShardRecorder(Recorder):
    """Checks on each of two devices that together they see each image once, in an order that changes."""

    def on_train_epoch_end(self) -> None:
        sampler = self.trainer.train_dataloader.sampler
        assert isinstance(sampler, DistributedSampler)
        mine = torch.tensor(list(sampler))
        everyone = self.all_gather(mine)
        assert len(everyone.unique()) == 1167
        self.seen[self.current_epoch] = everyone.flatten().tolist()

    def on_train_end(self) -> None:
        assert self.seen[0] != self.seen[1]


@pytest.mark.slow
def test_two_devices_share_the_shuffled_images(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=2,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ShardRecorder(), Digits(batch_size=300))
