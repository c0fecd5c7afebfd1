"""Observations of images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.fake_data import make_cifar10
from torch import Tensor
from torchvision.transforms import v2

from deq_lightning import CIFAR10, MNIST, Blur, Degraded, Digits, Downsampling, KarateClub, RandomDots
from deq_lightning.app.translation import with_flags
from deq_lightning.configured import CombinationError
from deq_lightning.data import DataError, DatasetNotFoundError
from deq_lightning.samples import RECONSTRUCTION, Samples


def digits(operator: object = None, **options) -> Degraded:
    data = Degraded(Digits(batch_size=400), operator, **options)
    data.setup()
    return data


def passed(data: Degraded, epoch: int) -> tuple[Tensor, Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return next(iter(loader))


def test_an_observation_is_the_operator_of_the_image_and_noise() -> None:
    data = digits(Downsampling(2), noise=0.1)
    y, x = next(iter(data.test_dataloader()))
    pixels = {tuple(row) for row in (load_digits().data / 16).round(4).tolist()}
    assert all(tuple(row) in pixels for row in x.flatten(1).double().numpy().round(4).tolist())
    noise = y - Downsampling(2)(x)
    assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.003
    assert data.samples == Samples(RECONSTRUCTION, 1, (8, 8), operator=Downsampling(2))
    assert data.samples.example().shape == (2, 1, 4, 4)
    clean = digits(noise=0.0)
    y, x = clean.test_set[5]
    assert torch.equal(y, Blur()(x[None])[0])


def test_noise_is_fixed_for_evaluation_and_fresh_each_epoch_and_reproducible() -> None:
    one, other, seeded = digits(), digits(), digits(seed=1)
    state = torch.get_rng_state()
    for split in ("val_set", "test_set"):
        first, second = getattr(one, split)[3], getattr(other, split)[3]
        assert torch.equal(first[0], getattr(one, split)[3][0]) and torch.equal(first[0], second[0])
        different = getattr(seeded, split)[3]
        assert torch.equal(first[1], different[1]) and not torch.equal(first[0], different[0])
    noise = [part[3][0] - Blur()(part[3][1][None])[0] for part in (one.val_set, one.test_set, one.train_set)]
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    (y0, x0), (y1, x1), (y2, x2) = passed(one, 0), passed(one, 1), passed(other, 1)
    assert torch.equal(y1, y2) and torch.equal(x1, x2)
    order = [x.flatten(1).sort(dim=0).values for x in (x0, x1)]
    assert order[0].shape == order[1].shape and not torch.equal(y0, y1)
    assert torch.equal(torch.get_rng_state(), state)
    before = one.train_set[7]
    one.train_set.epoch.fill_(5)
    after = one.train_set[7]
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


def test_random_transforms_of_the_images_are_fresh_each_epoch_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cifar10(folder / "data", monkeypatch)
    images = CIFAR10(str(folder / "data"), val_size=10, augmentation=[v2.RandomCrop(32, padding=8)], num_workers=0)
    data = Degraded(images, noise=0.0)
    data.setup("fit")
    views = []
    for epoch in range(3):
        data.train_set.epoch.fill_(epoch)
        views.append(data.train_set[0][1])
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])
    raw = images.val_set.dataset.data[images.val_set.indices[0]]
    torch.testing.assert_close(data.val_set[0][1], torch.from_numpy(raw).permute(2, 0, 1) / 255, rtol=0, atol=1e-6)


def test_black_and_white_dots_are_zero_and_one() -> None:
    data = Degraded(RandomDots(8, 2, train_size=4, val_size=4, test_size=4))
    data.setup("test")
    assert data.test_set[0][1].unique().tolist() == [0, 1]
    assert list(data.sample_columns) == ["shift"] and data.split_sizes() == {"test": 4}


def test_new_observations_are_read_as_they_are(folder: Path) -> None:
    data = digits(Downsampling(2))
    y = np.random.RandomState(0).rand(3, 1, 4, 4).astype(np.float32)
    np.save("y.npy", y)
    (batch,) = data.inputs("y.npy").predict_dataloader()
    assert np.array_equal(batch.numpy(), y)
    with pytest.raises(DataError, match=re.escape("observations of `Downsampling(factor=2)` are (1, 4, 4)")):
        data.inputs("y.png")
    v2.functional.to_pil_image(torch.full((1, 8, 8), 51, dtype=torch.uint8)).save("y.png")
    (batch,) = digits().inputs("y.png").predict_dataloader()
    torch.testing.assert_close(batch, torch.full((1, 1, 8, 8), 0.2))


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    with pytest.raises(CombinationError, match="which `KarateClub` has not"):
        Degraded(KarateClub())
    with pytest.raises(ValueError, match="`images` must be a data module of images, got 'Digits'"):
        Degraded("Digits")
    message = "`factor` must divide height and width, got 3, for images of 8 x 8 pixels. Set another `operator`."
    with pytest.raises(CombinationError, match=f"^{re.escape(message)}$"):
        digits(Downsampling(3))


def test_errors_of_the_images_name_their_arguments_from_outside(folder: Path) -> None:
    data = Degraded(MNIST("nowhere"))
    for asked in (data.prepare_data, data.setup):
        with pytest.raises(DatasetNotFoundError, match=r"`images\.download=True` to fetch it, or `images\.root=PATH`"):
            asked()
    assert "Type `--data.images.root PATH`" in with_flags(DataError("Set `images.root=PATH`."))
