"""Pictures of rendered views beside their truth, for loggers and disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.callbacks.framing import grid_cells
from lightning_nerf.callbacks.loggers import log_image, warning_instead
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained, view_outputs
from lightning_nerf.checks import check_integer
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.files import whole_file
from lightning_nerf.types import Render

ERROR_SHOWN = 0.2  # the absolute error that has the highest color
GAP = 8  # pixels between panels


class Panel(NamedTuple):
    """One of the pictures that are shown side by side."""

    name: str
    image: Tensor  # [H, W, 3] in [0, 1]
    scale: tuple[float, float] | None = None  # what the lowest and the highest color stand for


def panels(prediction: Tensor, truth: Tensor, depth: Tensor, opacity: Tensor, cells: Tensor | None = None) -> list[Panel]:
    """Prediction, truth, error, depth and, with the ``cells`` of a grid, a slice of it; see :func:`comparison`."""
    error = colorize((prediction - truth).abs().mean(-1) / ERROR_SHOWN)
    distance = depth / opacity.clamp(min=1e-6)
    opaque, ends = distance[opacity > 0.5], None
    if len(opaque) > 0:
        stride = max(1, len(opaque) // 100_000)  # torch.quantile takes at most 16 M values
        some = opaque[::stride].float()
        low, high = torch.quantile(some, some.new_tensor([0.01, 0.99]))
        ends = float(low), float(high)
        shown = colorize((distance - low) / (high - low).clamp(min=1e-6)) * opacity[..., None].clamp(0, 1)
    else:
        shown = torch.zeros_like(error)
    found = [
        Panel("prediction", prediction.clamp(0, 1)),
        Panel("truth", truth),
        Panel("error", error, (0.0, ERROR_SHOWN)),
        Panel("depth", shown, ends),
    ]
    if cells is not None:
        middle = cells[0, :, :, cells.shape[3] // 2].T.flip(0)  # [Y, X]
        size = (len(prediction), len(prediction))
        grid = colorize(F.interpolate(middle[None, None].float(), size, mode="nearest")[0, 0])
        found.append(Panel("occupancy", grid))
    return found


def comparison(prediction: Tensor, truth: Tensor, depth: Tensor, opacity: Tensor, cells: Tensor | None = None) -> Tensor:
    """Prediction | truth | error | depth | occupancy slice, side by side: [H, 4 W + H, 3] in [0, 1].

    The error is the mean absolute one, shown from 0 to 0.2. The depth is divided by the opacity and shown from its 1st to
    its 99th percentile over the opaque pixels. The slice is the middle one along z of the first level of a grid's ``cells``
    [L, X, Y, Z] bool, x to the right and y upwards, occupied cells yellow; without ``cells`` it is left out.
    """
    return torch.cat([panel.image for panel in panels(prediction, truth, depth, opacity, cells)], dim=1)


def view_picture(render: Render, truth: Tensor, estimator: Estimator) -> Tensor:
    """The panels of :func:`comparison` with their names above and scales of colors below, uint8 on the CPU."""
    shown = render.rgb.float(), truth.float(), render.depth, render.opacity
    return labelled(panels(*shown, grid_cells(estimator)))


def labelled(row: Sequence[Panel]) -> Tensor:
    """Panels of one height beside each other, [h, w, 3] uint8 on the CPU: black words on white."""
    height = len(row[0].image)
    font = _font(min(24, max(10, height // 32)))
    line = int(sum(font.getbbox("Ag0")[1::2])) + 2  # as much below as above
    bar = max(3, line // 3)
    words = [[panel.name, *(f"{end:.3g}" for end in panel.scale or ())] for panel in row]
    # A picture that is narrower than words gets more room, not shorter words; the same for all, whatever the numbers.
    least = int(font.getlength("prediction")) + 1
    widths = [max(panel.image.shape[1], least) for panel in row]
    scales = bar + line + GAP if any(panel.scale for panel in row) else 0
    size = (sum(widths) + GAP * (len(row) + 1), line + height + scales + 2 * GAP)
    canvas = Image.new("RGB", size, "white")
    draw, left = ImageDraw.Draw(canvas), GAP
    for panel, (name, *ends), width in zip(row, words, widths, strict=True):
        draw.text((left, GAP // 2), name, "black", font)
        canvas.paste(Image.fromarray(to_uint8(panel.image).numpy()), (left, line + GAP))
        if ends:
            shades = to_uint8(colorize(torch.linspace(0, 1, width))).expand(bar, width, 3).contiguous()
            canvas.paste(Image.fromarray(shades.numpy()), (left, line + height + 2 * GAP))
            top = line + height + 2 * GAP + bar
            draw.text((left, top), ends[0], "black", font)
            draw.text((left + width - int(font.getlength(ends[1])), top), ends[1], "black", font)
        left += width + GAP
    return torch.from_numpy(np.array(canvas))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own; of this size where Pillow has FreeType (10.1 and later), else its one bitmap font."""
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError, TypeError):
        return ImageFont.load_default()


class ImageLogger(WritesRunFiles):
    """Log views as prediction | truth | error | depth | occupancy slice, with labels; see :func:`comparison`.

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
        picture = view_picture(view["render"], view["truth"], trained(pl_module).estimator)
        path = folder / f"{split}_{view['name']}.png"
        with warning_instead(str(path)):
            save_png(path, picture)
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
        save_png(run_folder(trainer) / "predictions" / f"{outputs['name']}.png", to_uint8(outputs["rgb"]))


def save_png(path: Path, picture: Tensor) -> None:
    """Write a picture [H, W, 3] uint8, whole or not at all."""
    with whole_file(path) as file:
        imageio.imwrite(file, picture.numpy(), extension=".png")
