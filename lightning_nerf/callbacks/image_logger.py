"""Pictures of rendered views beside their truth, for loggers and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.callbacks.loggers import log_image, run_goes_on
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained, view_outputs
from lightning_nerf.checks import check_integer
from lightning_nerf.files import whole_file


def comparison(prediction: Tensor, truth: Tensor, depth: Tensor, opacity: Tensor, cells: Tensor | None = None) -> Tensor:
    """Prediction | truth | error | depth | occupancy slice, side by side: [H, 4 W + H, 3] in [0, 1].

    The error is the mean absolute one, shown from 0 to 0.2. The depth is divided by the opacity and shown from its 1st to
    its 99th percentile over the opaque pixels. The slice is the middle one along z of the first level of a grid's ``cells``
    [L, X, Y, Z] bool, x to the right and y upwards, occupied cells yellow; without ``cells`` it is left out.
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
    panels = [prediction.clamp(0, 1), truth, error, shown]
    if cells is not None:
        middle = cells[0, :, :, cells.shape[3] // 2].T.flip(0)  # [Y, X]
        size = (len(prediction), len(prediction))
        panels.append(colorize(F.interpolate(middle[None, None].float(), size, mode="nearest")[0, 0]))
    return torch.cat(panels, dim=1)


class ImageLogger(WritesRunFiles):
    """Log views as prediction | truth | error | depth | occupancy slice, see :func:`comparison`.

    They go to ``images/{split}_{view}.png`` in the run folder and, named ``{split}/{view}``, to every logger that takes
    pictures (:func:`~lightning_nerf.callbacks.loggers.log_image`). The slice is shown where the estimator has ``binaries``
    [L, X, Y, Z], as :class:`OccupancyGrid` does. ``predict`` saves every view, alone, as ``predictions/{view}.png``.

    Args:
        n_views: how many views of each split, from its first on.
    """

    def __init__(self, n_views: int = 4) -> None:
        check_integer("n_views", n_views, 0)
        self.n_views = n_views

    def _log(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, split: str, batch_idx: int
    ) -> None:
        folder = run_folder(trainer) / "images"  # on every rank: it asks rank 0
        if batch_idx >= self.n_views or not trainer.is_global_zero or trainer.sanity_checking:
            return
        view = view_outputs(outputs)
        render, cells = view["render"], getattr(trained(pl_module).estimator, "binaries", None)
        cells = cells if isinstance(cells, Tensor) and cells.ndim == 4 else None
        picture = to_uint8(comparison(render.rgb.float(), view["truth"].float(), render.depth, render.opacity, cells))
        path = folder / f"{split}_{view['name']}.png"
        with run_goes_on(str(path)):
            _save_png(path, picture)
        log_image(trainer, f"{split}/{view['name']}", picture.numpy())

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log a validation view."""
        self._log(trainer, pl_module, outputs, "val", batch_idx)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log a test view."""
        self._log(trainer, pl_module, outputs, "test", batch_idx)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save a predicted view; each rank its own."""
        _save_png(run_folder(trainer) / "predictions" / f"{outputs['name']}.png", to_uint8(outputs["rgb"]))


def _save_png(path: Path, picture: Tensor) -> None:
    with whole_file(path) as file:
        imageio.imwrite(file, picture.numpy(), extension=".png")
