"""Scores the views that validation and test render."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_nerf.callbacks.trained import trained, view_outputs

SSIM_WINDOW = 11  # pixels a side


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of two float images in [0, 1]: ``-10 log10(mean squared error)``, at most 100."""
    return -10 * torch.log10((prediction.float() - truth.float()).square().mean().clamp(min=1e-10))


class PSNRLogger(L.Callback):
    """Log ``val/psnr`` and ``val/ssim`` (or ``test/…``): the mean over the split of each image's value.

    Per image on float renders against float truth, without quantization: the convention of the NeRF papers.

    Args:
        ssim: also compute SSIM (torchmetrics: Gaussian window of 11, sigma 1.5). Pictures that are smaller than the window
            have none; that is said once, for pictures of the training's size before the training.
    """

    def __init__(self, ssim: bool = True) -> None:
        self.ssim = ssim
        self._told = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it now where the training views are too small for SSIM: the views that are scored are so, too."""
        smallest = int(trained(pl_module).datamodule.scene("train").cameras.size.min())
        if self.ssim and smallest < SSIM_WINDOW:
            self._tell(smallest)

    def _tell(self, side: int) -> None:
        if not self._told:
            rank_zero_info(f"SSIM is left out: its window has {SSIM_WINDOW} pixels a side, a picture here has {side}")
        self._told = True

    def _score(self, pl_module: L.LightningModule, outputs: STEP_OUTPUT, split: str) -> None:
        view = view_outputs(outputs)
        prediction, truth = view["render"].rgb.float(), view["truth"].float()
        options = {"on_step": False, "on_epoch": True, "batch_size": 1, "sync_dist": True}
        pl_module.log(f"{split}/psnr", psnr(prediction, truth), prog_bar=True, **options)
        smallest = min(truth.shape[:2])
        if self.ssim and smallest < SSIM_WINDOW:
            self._tell(smallest)
        elif self.ssim:
            images = (prediction.permute(2, 0, 1)[None].clamp(0, 1), truth.permute(2, 0, 1)[None])
            ssim = structural_similarity_index_measure(*images, data_range=1.0)
            pl_module.log(f"{split}/ssim", ssim, **options)  # type: ignore[arg-type]

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a validation view."""
        self._score(pl_module, outputs, "val")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a test view."""
        self._score(pl_module, outputs, "test")
