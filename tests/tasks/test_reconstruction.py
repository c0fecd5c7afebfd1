"""Images that are found."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from support.runs import QUIET, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Subset

import deq_lightning
from deq_lightning import Anderson, Degraded, DEGradient, Digits, Mask, PredictionWriter, Reconstruction
from deq_lightning.app.messages import UsageError
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError

FLAGS = [
    *("--config", "digits_upg_deblur", "--model.net.width", "4", "--test_after_fit", "false", *QUIET),
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
]


def task(operator: object = None, ssim_std: float = 0.5, **options) -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(DEGradient(operator=operator, width=4, solver=Anderson()), ssim_std, **options)


@pytest.fixture(scope="module")
def data() -> Degraded:
    data = Degraded(Digits(batch_size=16))
    data.setup()
    data.setup = lambda stage=None: None
    data.val_set, data.test_set = Subset(data.val_set, range(20)), Subset(data.test_set, range(20))
    return data


def test_the_figures_are_those_by_hand(folder: Path, data: Degraded) -> None:
    model, run = task(), trainer(folder, PredictionWriter(str(folder / "out.csv"), pictures=True))
    (figures,) = run.test(model, data, verbose=False)
    y, x = (torch.stack(part) for part in zip(*(data.test_set[n] for n in range(20)), strict=True))
    with torch.no_grad():
        raw = model.eval()(y)
    found = raw.clamp(0, 1)
    psnr = 10 * np.log10(1 / ((found - x).double().numpy() ** 2).mean(axis=(1, 2, 3)))
    assert figures["test_psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert figures["test_loss"] == pytest.approx(((raw - x) ** 2).mean().item(), rel=1e-4)
    assert 0 < figures["test_ssim"] < 1
    run.predict(model, data)
    rows = list(csv.DictReader((folder / "out.csv").open()))
    np.testing.assert_allclose([float(row["psnr"]) for row in rows], psnr, atol=1e-3)
    assert {"index", "mean", "psnr", "solver_steps", "solver_residual"} == rows[0].keys()
    strip = np.asarray(Image.open(folder / "out" / "7.png")) / 255
    wanted = torch.cat([y[7, 0].clamp(0, 1), found[7, 0], x[7, 0]], dim=1)
    np.testing.assert_allclose(strip, wanted, atol=1 / 254)


def test_the_best_image_has_the_highest_psnr(data: Degraded) -> None:
    model = task()
    assert (model.monitor, model.mode) == ("val_psnr", "max")
    assert model.mode_of("val_ssim") == "max" and model.mode_of("val_loss") == "min"
    x = data.test_set[0][1][None]
    model.val_metrics.update(x, x)
    assert model.val_metrics.compute()["val_psnr"] > 100 and model.val_metrics.compute()["val_ssim"] == 1


def test_a_validation_draws_what_was_found(folder: Path, data: Degraded) -> None:
    logger = TensorBoardLogger(folder, name="", version="")
    trainer(folder, logger=logger).validate(task(), data, verbose=False)
    logger.experiment.flush()
    events = EventAccumulator(str(folder)).Reload()
    (picture,) = events.Images("val_images")
    assert (picture.height, picture.width) == (3 * 10 + 2, 8 * 10 + 2)  # three rows of eight, and what is between


def test_what_does_not_fit_is_refused(folder: Path, data: Degraded) -> None:
    for model, message in (
        (task(Mask()), "`operator` of the network must be that of the data, Blur(std=1.0, kernel_size=5, "),
        (task(ssim_std=1.5), "`ssim_std` must be below 1.1 for images of 8 pixels, got 1.5. Set `model.ssim_std=0.5`."),
    ):
        with pytest.raises(CombinationError, match=re.escape(message)):
            trainer(folder).validate(model, data, verbose=False)
    wrong = SimpleNamespace(net=lambda x: (x[..., 1:], []))
    with pytest.raises(CombinationError, match=re.escape("must find images (1, 8, 8), got an answer (2, 1, 8, 7)")):
        Reconstruction.answer(wrong, (torch.zeros(2, 1, 8, 8),) * 2, "val")


def test_the_command_line_hands_the_operator_of_the_data_to_the_network(folder: Path) -> None:
    cli = main(["fit", *FLAGS, "--data.operator", "Mask", "--data.operator.missing", "0.25", "--seed_everything", "3"])
    assert cli.model.net.operator == cli.datamodule.operator == Mask(0.25)
    assert cli.datamodule.images.seed == cli.datamodule.seed == 3
    best = folder / "checkpoints" / "digits_upg_deblur" / "best.ckpt"
    model = deq_lightning.load(best)
    assert model.net.operator == Mask(0.25)
    np.save("y.npy", np.random.RandomState(0).rand(3, 1, 8, 8).astype(np.float32))
    main(["predict", "--ckpt_path", str(best), "--inputs", "y.npy", "--predictions.pictures", "true"])
    rows = list(csv.DictReader(best.with_name("predictions.csv").open()))
    found = model.predict(torch.from_numpy(np.load("y.npy")))
    np.testing.assert_allclose([float(row["mean"]) for row in rows], found["mean"], atol=1e-4)
    assert Image.open(best.with_name("predictions") / "2.png").size == (16, 8)


@pytest.mark.slow
def test_another_operator_of_the_network_is_refused_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--model.net.operator", "Mask"], "`operator` of the network must be"),
        (["--model", "ImageClassification", "--model.net", "MDEQ"], "Type `--model Reconstruction`"),
    ):
        with pytest.raises((SystemExit, UsageError)):
            main(["fit", *FLAGS, *flags])
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and len(error.splitlines()) <= 2
