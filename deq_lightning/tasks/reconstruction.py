"""Images to be found."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchvision.utils import make_grid

from deq_lightning.configured import CombinationError, above
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import RECONSTRUCTION, samples_of
from deq_lightning.tasks.supervised import SupervisedTask

SHOWN = 8  # images on the logger's picture
IMAGE = (1, 2, 3)  # dimensions of an image in a batch


class Reconstruction(SupervisedTask):
    """Finds images with values in [0, 1] from observations of them, and reports the PSNR, which ranks models.

    The loss is the mean squared error. Figures are those of what was found, cut off to [0, 1], and means over the
    images: `val_psnr` in decibel, and `val_ssim`; the same with `test_`. `predict` gives the PSNR of each image and its
    mean value, and with `--predictions.pictures true` the image. Loggers that take pictures (TensorBoard) get one at
    the end of a validation: observations above, what was found, and the images below.

    Args:
        net: the model; maps observations to (batch, channels, height, width).
        ssim_std: standard deviation of the window of SSIM in pixels, above 0. Images must be more than 7 times as high
            and wide.
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if an argument is out of its range, or `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.

    References:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Trans. Image
        Processing 13(4), 2004.
    """

    takes = (RECONSTRUCTION,)
    every_picture = False  # whether tables have `picture`, (images, channels, height, 2 or 3 widths)

    def __init__(self, net: Network, ssim_std: float = 1.5, **options: Any) -> None:
        super().__init__(net, **options)
        above(0, ssim_std=ssim_std)
        self.ssim_std = ssim_std
        self.measure(
            psnr=PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=IMAGE),
            ssim=StructuralSimilarityIndexMeasure(sigma=ssim_std, data_range=1.0),
        )

    def setup(self, stage: str) -> None:
        """Prepare, and make sure that the network has the operator of the data, and SSIM its window."""
        super().setup(stage)
        samples = samples_of(getattr(self.trainer, "datamodule", None))
        own = getattr(self.net, "operator", None)
        if samples is None:
            return
        if own is not None and own != samples.operator:
            raise CombinationError(
                f"`operator` of the network must be that of the data, {samples.operator}, got {own}. Pass that."
            )
        size = min(samples.size or [math.inf])
        if size <= 7 * self.ssim_std:
            raise CombinationError(
                f"`ssim_std` must be below {size / 7:.2g} for images of {size} pixels, got {self.ssim_std}. Set "
                f"`model.ssim_std={size / 16:.2g}`."
            )

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Any, list[Equilibrium]]:
        """Return what was found, and the images of a batch of (observations, images)."""
        del split
        observed, wanted = batch
        found, equilibria = self.net(observed)
        if wanted is not None and found.shape != wanted.shape:
            raise CombinationError(
                f"`{type(self.net).__name__}` must find images {tuple(wanted.shape[1:])}, got an answer "
                f"{tuple(found.shape)}. Choose a network for images, such as `DEGradient`."
            )
        return found, wanted, equilibria

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(logits.to(y), y)

    def decide(self, logits: Tensor) -> Tensor:
        """Return what was found, cut off to [0, 1]."""
        return logits.float().clamp(0, 1)

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Any]:
        """Return the mean value of each image, and its PSNR where the image is known."""
        found = self.decide(logits)
        columns = {"mean": found.mean(dim=IMAGE)} | ({} if y is None else {"psnr": psnr(found, y)})
        return columns | ({"picture": found} if self.every_picture else {})

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return that table; a picture has what was observed on its left, and the image on its right."""
        table = super().predict_step(batch, batch_idx, dataloader_idx)
        if "picture" in table:
            observed, *wanted = [batch] if isinstance(batch, Tensor) else batch
            table["picture"] = torch.cat(beside(observed, table["picture"], *wanted), dim=-1)
        return table

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the figures, and a picture of the first images."""
        super().validation_step(batch, batch_idx)
        draws = [getattr(getattr(logger, "experiment", None), "add_image", None) for logger in self.trainer.loggers]
        if batch_idx == 0 and any(draws) and not self.trainer.sanity_checking:
            observed, wanted = (images[:SHOWN] for images in batch)
            rows = beside(observed, self.decide(self.net(observed)[0]), wanted)
            for draw in filter(None, draws):
                draw("val_images", make_grid(torch.cat(rows), nrow=len(wanted)), self.global_step)


def psnr(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in decibel, where the peak is 1, (batch,)."""
    return -10 * (found - wanted).square().mean(dim=IMAGE).log10()


def beside(observed: Tensor, found: Tensor, *wanted: Tensor) -> list[Tensor]:
    """Return images of one size with values in [0, 1]; observations of another size are enlarged to it."""
    return [F.interpolate(observed.to(found), found.shape[-2:]).clamp(0, 1), found, *wanted]
