"""`predict --inputs`: new samples without labels, answered as those of the test split."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from support.runs import QUIET

import deq_lightning
from deq_lightning import ImageFolder, KarateClub
from deq_lightning.app.messages import UsageError
from deq_lightning.app.predicting import described, name_faults, new_inputs
from deq_lightning.cli import main
from deq_lightning.data import DataError

Row = dict[str, str]
RTOL = 1e-2
SMALL = [
    *("--config", "digits_upg", *QUIET, "--name", "pics", "--test_after_fit", "false", "--trainer.max_steps", "2"),
    *("--data", "ImageFolder", "--data.root", "pics", "--data.eval_batch_size", "4"),
    *("--model.net.channels", "[4]", "--model.net.groups", "2", "--model.net.head_channels", "[2]"),
    *("--model.net.final_channels", "8", "--model.net.solver.eval_max_steps", "5"),
    *("--model.net.solver.rtol", str(RTOL)),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run and its images."""
    folder, draws = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for name, low in {"dark": 0, "light": 90}.items():
        (folder / "pics" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draws.integers(low, low + 160, (6, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pics" / name / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        main(["fit", *SMALL])
        main(["predict", "--ckpt_path", "checkpoints/pics/best.ckpt", "--predictions.path", "test.csv"])
    return folder


@pytest.fixture
def run(trained: Path, folder: Path) -> Path:
    """The run alone, in the current folder: the images of its training are gone."""
    shutil.copytree(trained / "checkpoints", folder / "checkpoints")
    return trained


def read(path: Path | str) -> list[Row]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def ended(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the exit status of a prediction and its lines on standard error."""
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--ckpt_path", "checkpoints/pics/best.ckpt", *arguments])
    return exit_.value.code, capsys.readouterr().err.strip().splitlines()


def test_a_loaded_task_answers_a_path(run: Path) -> None:
    """Prepared as in the training, whose images are gone, and what is no image left out; no config need lie beside."""
    expected = read(run / "test.csv")
    for row in expected:
        Path("new", row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "pics" / row["file"], Path("new", row["file"]))
    Path("new/bad.png").write_text("no image")
    best = Path("checkpoints/pics/best.ckpt")
    best.with_name("config.yaml").unlink()
    with pytest.warns(UserWarning, match=r"left out: .*bad\.png"):
        table = deq_lightning.load(best).predict("new")
    assert table["file"] == sorted(row["file"] for row in expected)
    rows = {row["file"]: row for row in expected}
    for number, file in enumerate(table["file"]):
        assert table["class"][number] == rows[file]["class"]
        assert table["probability"][number].item() == pytest.approx(float(rows[file]["probability"]), abs=1e-4)
    (one,) = deq_lightning.load(best).predict(Path("new") / table["file"][0])["probability"]
    assert one == pytest.approx(table["probability"][0].item(), abs=1e-4)


def test_a_path_needs_data_that_is_known_and_of_this_program(run: Path) -> None:
    best = Path("checkpoints/pics/best.ckpt")
    task = deq_lightning.load(best)
    with pytest.raises(DataError, match="there is no"):
        task.predict("nowhere")
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["made_of"]["data"] = {"class_path": "os.system", "init_args": {}}
    torch.save(checkpoint, "other.ckpt")
    with pytest.raises(ValueError, match=r"names os\.system as `data\.class_path`, which is not of this program"):
        deq_lightning.load("other.ckpt").predict(run / "pics")
    checkpoint["made_of"]["data"] = None
    torch.save(checkpoint, "other.ckpt")
    with pytest.raises(ValueError, match="does not say how the data of its training is made"):
        deq_lightning.load("other.ckpt").predict(run / "pics")
    task.trained_on = None
    with pytest.raises(ValueError, match=r"a path is for a task that `deq_lightning\.load` has made"):
        task.predict(run / "pics")


def test_new_images_are_answered_as_the_test_split_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without labels, and with bad files among them, which are named at the end."""
    expected = read(run / "test.csv")
    for row in expected:
        Path("new", row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "pics" / row["file"], Path("new", row["file"]))
    for number in range(5):  # a whole batch among them
        Path(f"new/dark/bad{number}.png").write_text("no image")
    Image.new("L", (3, 3)).save("new/small.png")
    Path("new/notes.txt").write_text("no image")
    status, errors = ended("--inputs", "new", "--predictions.probabilities", "true", capsys=capsys)
    assert status == 1 and len(errors) == 6
    for number, error in enumerate(errors[:5]):
        assert error.startswith(f"error: `new/dark/bad{number}.png` cannot be read")
    assert errors[5].startswith("error: `new/small.png` has 3x3 pixels")
    rows = read("checkpoints/pics/predictions.csv")
    assert list(rows[0]) == [
        *("index", "file", "prediction", "probability", "solver_steps", "solver_residual", "converged", "class"),
        *("probability_dark", "probability_light"),
    ]
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows) == [row["file"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert (row["prediction"], row["class"]) == (other["prediction"], other["class"])
        for name in ("probability", "solver_residual"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3, abs=1e-5)
        assert row["converged"] == str(int(float(row["solver_residual"]) <= RTOL))
        assert float(row["probability_dark"]) + float(row["probability_light"]) == pytest.approx(1)
        assert row[f"probability_{row['class']}"] == row["probability"]


def test_where_nothing_can_be_read_nothing_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad").mkdir()
    for name in ("a", "b"):
        Path("bad", f"{name}.png").touch()
    status, (error,) = ended("--inputs", "bad", capsys=capsys)
    assert status == 2 and error.startswith("error: `bad/a.png` cannot be read, it is damaged")
    assert error.endswith("(and so it is with all 2 in `bad`)")
    assert not list(Path("checkpoints/pics").glob("*predictions*"))


def test_a_task_answers_tensors(run: Path) -> None:
    """As the command line does, with the state of the data that the checkpoint has."""
    checkpoint = torch.load(run / "checkpoints/pics/best.ckpt", weights_only=True)
    data = ImageFolder("gone")
    data.load_state_dict(checkpoint["ImageFolder"])
    expected = read(run / "test.csv")
    x = torch.stack([data.prepare(run / "pics" / row["file"]) for row in expected])
    task = deq_lightning.load(run / "checkpoints/pics/best.ckpt").train()
    table = task.predict(x)
    assert task.training and table.keys() == {
        *("prediction", "probability", "solver_steps", "solver_residual", "converged", "class"),
    }
    assert table["class"] == [row["class"] for row in expected]
    assert table["probability"].tolist() == pytest.approx([float(row["probability"]) for row in expected], rel=1e-3)
    np.save("x.npy", x.numpy())
    inputs = data.inputs("x.npy")
    assert inputs.note and inputs.class_names == ["dark", "light"] and inputs.samples == data.samples
    assert torch.equal(torch.cat(list(inputs.predict_dataloader())), x)


def test_at_most_ten_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    name_faults([f"`{number}` is bad\n" for number in range(12)])
    assert capsys.readouterr().err.splitlines()[9:] == ["error: `9` is bad\\n", "error: and 2 more, 12 in all"]


def test_inputs_are_for_predict_and_for_data_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["test", "--inputs=x"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "error: `--inputs` is for `predict`; `test` needs samples with labels. Type `--data` for it.\n"
    )
    for data, name in ((KarateClub(), "KarateClub"), (pl.LightningDataModule(), "LightningDataModule")):
        with pytest.raises(DataError, match=f"^`{name}` cannot read new inputs, got `x`. Predict its test samples.$"):
            new_inputs(data, "x")
    assert new_inputs(data, None) is data


def test_a_damaged_state_is_a_line() -> None:
    data = ImageFolder("gone")
    with pytest.raises(UsageError, match="the checkpoint's state of the data is damaged"):
        described(data, {"ImageFolder": {"size": 3}}, needed=True)
