"""Saves pictures of rendered views beside their truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import lightning as L
import torch
from torch import Tensor

from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.callbacks.run_folder import WritesFiles, run_folder
from lightning_nerf.files import whole_file
from lightning_nerf.ops._checks import check_integer


def comparison(prediction: Tensor, truth: Tensor, depth: Tensor, opacity: Tensor) -> Tensor:
    """Prediction | truth | error | depth, side by side: [H, 4 W, 3] in [0, 1].

    The error is the mean absolute one, shown from 0 to 0.2. The depth is divided by the opacity and shown from its 1st to
    its 99th percentile over the opaque pixels.
    """
    error = colorize((prediction - truth).abs().mean(-1) / 0.2)
    distance = depth / opacity.clamp(min=1e-6)
    opaque = distance[opacity > 0.5]
    if len(opaque) > 0:
        stride = max(1, len(opaque) // 100_000)  # torch.quantile takes at most 16 M values
        low, high = torch.quantile(opaque[::stride].float(), torch.tensor([0.01, 0.99], device=opaque.device))
        shown = colorize((distance - low) / (high - low).clamp(min=1e-6)) * opacity[..., None].clamp(0, 1)
    else:
        shown = torch.zeros_like(error)
    return torch.cat([prediction.clamp(0, 1), truth, error, shown], dim=1)


class ComparisonImages(WritesFiles):
    """Save ``images/{split}_{view}.png`` in the run folder: prediction | truth | error | depth.

    ``predict`` saves every view, alone, as ``predictions/{view}.png``.

    Args:
        n_views: how many views of each split, from its first on.
    """

    def __init__(self, n_views: int = 4) -> None:
        check_integer("n_views", n_views, 0)
        self.n_views = n_views

    def _save(self, trainer: L.Trainer, outputs: Any, split: str, batch_idx: int) -> None:
        folder = run_folder(trainer) / "images"  # on every rank: it asks rank 0
        if batch_idx >= self.n_views or not trainer.is_global_zero or trainer.sanity_checking:
            return
        render = outputs["render"]
        picture = comparison(render.rgb.float(), outputs["truth"].float(), render.depth, render.opacity)
        _save_png(folder / f"{split}_{outputs['name']}.png", picture)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save a validation view."""
        self._save(trainer, outputs, "val", batch_idx)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save a test view."""
        self._save(trainer, outputs, "test", batch_idx)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save a predicted view; each rank its own."""
        _save_png(run_folder(trainer) / "predictions" / f"{outputs['name']}.png", outputs["rgb"])


def _save_png(path: Path, picture: Tensor) -> None:
    with whole_file(path) as file:
        imageio.imwrite(file, to_uint8(picture).numpy(), extension=".png")
