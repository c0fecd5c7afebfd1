"""New inputs of the data modules that can read them."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_data import make_cifar10, make_imagenet
from torch import Tensor

from deq_lightning import CIFAR10, Digits, ImageNet, PythonDocs, RandomDots, TextFiles
from deq_lightning.data import DataError, NewInputs
from deq_lightning.data.text.vocabulary import END_ID


def batches(inputs: NewInputs) -> list[Tensor]:
    return list(inputs.predict_dataloader())


def test_what_cannot_be_read_is_left_out_of_the_batches() -> None:
    def read(number: int) -> Tensor:
        if number in (1, 3, 4, 5):
            raise DataError(f"no {number}")
        return torch.tensor(float(number))

    inputs = NewInputs(SimpleNamespace(eval_batch_size=2), "here", list("abcdefg"), read)
    for _ in range(2):  # a loader may be read again
        assert [batch.tolist() for batch in batches(inputs)] == [[0], [2], [6]]
        assert inputs.taken == [0, 2, 6] and inputs.faults == ["no 1", "no 3", "no 4", "no 5"]
    inputs.trainer = SimpleNamespace(global_rank=1, world_size=3)
    with pytest.raises(DataError, match=re.escape("no 1 (and so it is with all 2 in `here`)")):
        batches(inputs)
    inputs.trainer.global_rank = 2
    assert [batch.tolist() for batch in batches(inputs)] == [[2]] and inputs.taken == [2]


def test_a_file_of_a_test_image_becomes_that_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar10(folder / "data", monkeypatch)
    make_imagenet(folder, monkeypatch)
    cifar, imagenet = CIFAR10(str(folder / "data")), ImageNet(str(folder / "imagenet"), image_size=16)
    for data in (cifar, imagenet):
        data.setup("test")
    image = cifar.test_set.dataset.data[3]
    Image.fromarray(image).save("one.png")
    (batch,) = batches(CIFAR10("nowhere").inputs("one.png"))
    torch.testing.assert_close(batch[0], cifar.test_set[3][0])
    images = ImageNet("nowhere", image_size=16).inputs(str(folder / "imagenet" / "val"))
    assert [f"val/{name}" for name in images.names] == imagenet.file_names
    assert torch.equal(torch.cat(batches(images)), torch.stack([x for x, _ in imagenet.test_set]))
    assert images.samples is None  # its folders of classes are gone


def test_digits_are_scaled_as_they_were(folder: Path) -> None:
    data = Digits()
    data.setup()
    mean, std = data.moments
    pixels = (data.test_set[5][0] * std + mean) * 255
    one = Image.fromarray(pixels[0].round().numpy().astype(np.uint8))
    one.save("a.png")
    one.convert("RGBA").resize((40, 32)).save("b.PNG")
    inputs = Digits().inputs(".")
    (batch,) = batches(inputs)
    assert (batch[0] - data.test_set[5][0]).abs().max() < 0.01
    assert inputs.names == ["a.png", "b.PNG"] and batch.shape == (2, 1, 8, 8)


def test_where_there_are_no_images(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    Image.new("L", (8, 8)).save(".hidden/a.png")
    for path, message in {".": "`.` has no images in it (.bmp,", "-": "there is no `-`. Name a folder"}.items():
        with pytest.raises(DataError, match=re.escape(message)):
            Digits().inputs(path)


def test_arrays(folder: Path) -> None:
    """Are used as they are, with their rows that are no numbers left out; what is pickled is never read."""
    dots = RandomDots(size=8, max_shift=2, batch_size=2)
    x = np.random.default_rng(0).normal(size=(4, 2, 8, 8))
    x[1, 0, 0, 0] = np.nan
    np.save("x.npy", x)
    inputs = dots.inputs("x.npy")
    assert torch.equal(torch.cat(batches(inputs)), torch.tensor(x[[0, 2, 3]], dtype=torch.float32))
    assert inputs.faults == ["`x.npy[1]` must be finite numbers. Leave it out."]
    np.save("flat.npy", x[0, 0])
    np.save("one.npy", x[0])
    assert batches(dots.inputs("one.npy"))[0].shape == (1, 2, 8, 8)
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("two.npz", a=x, b=x)
    np.savez("named.npz", y=np.zeros(len(x)), x=x)
    assert torch.equal(batches(dots.inputs("named.npz"))[0], batches(dots.inputs("x.npy"))[0])
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:200])
    for name, message in {
        "objects.npy": "cannot be read as an array of numbers",
        "cut.npy": "cannot be read as an array of numbers",
        "flat.npy": "must hold numbers of shape (samples, 2, 8, 8), got float64 of shape (8, 8)",
        "two.npz": "must hold one array or one named x, got ['a', 'b']",
        "none.npy": "there is no `none.npy`",
        "x.png": "takes new inputs from a file .npy or .npz, got `x.png`",
    }.items():
        with pytest.raises(DataError, match=re.escape(message)):
            dots.inputs(name)


@pytest.mark.parametrize("path", ["-", "prompt.txt"])
def test_a_text_is_the_prompt(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("book.txt").write_text("the sun is up\nthe sea is low\n" * 40)
    text = b"The sun\nis low\n"
    Path("prompt.txt").write_bytes(text)
    for tokens, expected in {
        "words": ["the", "sun", "\n", "is", "low"],
        "bytes": [*"The sun", "<0A>", *"is low"],
    }.items():
        data = TextFiles("book.txt", tokens=tokens, batch_size=2, segment_length=4)
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))
        given = data.inputs(path)
        given.setup("predict")
        (batch,) = given.predict_dataloader()
        ids = batch.tokens[0].tolist()
        assert ids[0] == END_ID
        assert ["\n" if one == END_ID else given.vocabulary.words[one] for one in ids[1:]] == expected


def test_what_ends_in_the_documentation_is_a_paragraph() -> None:
    assert PythonDocs().lines("a\nb\n\nc") == [["a", "b"], ["c"]]


def test_a_text_that_is_none(folder: Path) -> None:
    Path("empty.txt").touch()
    for path, message in {"empty.txt": "`empty.txt` is empty", "none.txt": "cannot be read (No such file"}.items():
        with pytest.raises(DataError, match=re.escape(message)):
            TextFiles("book.txt").inputs(path)
