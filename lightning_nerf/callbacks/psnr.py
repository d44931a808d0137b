"""Scores the views that validation and test render."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_nerf.callbacks.trained import trained, view_outputs
from lightning_nerf.callbacks.view_scores import psnr_per_time, scores_of_all_ranks

SSIM_WINDOW = 11  # pixels a side


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of two float images in [0, 1]: ``-10 log10(mean squared error)``, at most 100."""
    return -10 * torch.log10((prediction.float() - truth.float()).square().mean().clamp(min=1e-10))


class PSNRLogger(L.Callback):
    """Log ``val/psnr`` and ``val/ssim`` (or ``test/…``): the mean over the split of each image's value.

    Per image on float renders against float truth, without quantization: the convention of the NeRF papers. Where the views
    have times, also ``val/psnr_time_0`` to ``val/psnr_time_4``, each the mean over the views of a fifth of the time between
    the first and the last training view; one without views is left out.

    Args:
        ssim: also compute SSIM (torchmetrics: Gaussian window of 11, sigma 1.5). Pictures that are smaller than the window
            have none; that is said once, for pictures of the training's size before the training.
    """

    def __init__(self, ssim: bool = True) -> None:
        self.ssim = ssim
        self._told = False
        self._scores: dict[str, Tensor] = {}  # PSNR of the views of a dynamic scene, by name

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
        score = psnr(prediction, truth)
        pl_module.log(f"{split}/psnr", score, prog_bar=True, **options)
        self._scores[str(view["name"])] = score.detach()
        smallest = min(truth.shape[:2])
        if self.ssim and smallest < SSIM_WINDOW:
            self._tell(smallest)
        elif self.ssim:
            images = (prediction.permute(2, 0, 1)[None].clamp(0, 1), truth.permute(2, 0, 1)[None])
            ssim = structural_similarity_index_measure(*images, data_range=1.0)
            pl_module.log(f"{split}/ssim", ssim, **options)  # type: ignore[arg-type]

    def _score_times(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        module = trained(pl_module)
        scene = module.datamodule.scene(split)
        if scene.cameras.times is None:
            return
        scores = {name: float(score) for name, score in self._scores.items()}
        bins = psnr_per_time(scene, scores_of_all_ranks(scores, trainer), module.field)
        for each in bins:
            if each.psnr is not None and bins[0].first < bins[-1].last:  # one moment has no parts
                pl_module.log(
                    f"{split}/{each.name}", each.psnr, sync_dist=True
                )  # of all ranks already: the mean is the same

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a former validation."""
        self._scores = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the parts of the time."""
        self._score_times(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a former test."""
        self._scores = {}

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the parts of the time."""
        self._score_times(trainer, pl_module, "test")

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
