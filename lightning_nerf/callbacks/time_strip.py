"""Shows one view of a dynamic scene at several times."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch import Tensor

from lightning_nerf.callbacks.image_logger import Panel, labelled, save_png
from lightning_nerf.callbacks.loggers import log_image, warning_instead
from lightning_nerf.callbacks.progress import shown
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.checks import BadArgument, check_integer

MAX_TIMES = 1000  # a limit that catches typos


class TimeStrip(WritesRunFiles):
    """Render one held-out camera at several times and log the pictures side by side, each below its time.

    The times are evenly spaced from the first view of the split to its last. After each validation and test the strip goes
    to ``images/{split}_over_time.png`` in the run folder and, named ``{split}/over_time``, to every logger that takes
    pictures. Without times in the views, or with a field that does not want them, it does nothing.

    >>> from lightning_nerf.callbacks import TimeStrip
    >>> TimeStrip(n_times=8).view
    0

    Args:
        n_times: pictures of the strip, 1 to 1000.
        view: whose camera is taken, its number within the split.
    """

    def __init__(self, n_times: int = 5, view: int = 0) -> None:
        check_integer("n_times", n_times, 1, MAX_TIMES)
        check_integer("view", view, 0)
        self.n_times = n_times
        self.view = view

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See before the training whether there is such a view, to validate on if the fit does, and to test on."""
        if trainer.limit_val_batches and _is_dynamic(pl_module, "val"):
            self._check_view(pl_module, "val")
        # The first view needs no look; reading the test views only for that would cost a fit time and memory.
        if self.view > 0 and trained(pl_module).datamodule.source.has_test_views() and _is_dynamic(pl_module, "test"):
            self._check_view(pl_module, "test")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See before the first test view is rendered whether there is such a view."""
        if _is_dynamic(pl_module, "test"):
            self._check_view(pl_module, "test")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log a strip of a validation view."""
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log a strip of a test view."""
        self._log(trainer, pl_module, "test")

    def _check_view(self, pl_module: L.LightningModule, split: str) -> None:
        n_views = trained(pl_module).datamodule.scene(split).n_views
        if self.view >= n_views:
            raise BadArgument(f"view: expected one of the {n_views} views of the {split} split, got {self.view}")

    @torch.no_grad()
    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        if not _is_dynamic(pl_module, split):
            return
        self._check_view(pl_module, split)
        path = run_folder(trainer) / "images" / f"{split}_over_time.png"  # on every rank: it asks rank 0
        if not trainer.is_global_zero:
            return
        module = trained(pl_module)
        cameras = module.datamodule.scene(split).cameras
        assert cameras.times is not None
        times = torch.linspace(float(cameras.times.min()), float(cameras.times.max()), self.n_times)
        still = cameras.chosen([self.view] * self.n_times)._replace(times=times)
        background = module.eval_background()
        views = shown(
            trainer, range(self.n_times), "time strip", "frame", leave=False
        )  # a fit may draw its own bar around it
        with trainer.precision_plugin.forward_context():
            renders = [module.render_camera(still, i, background).rgb for i in views]
        digits = significant_digits(times)
        words = [f"time {time:.{digits}g}" for time in times.tolist()]
        strip = labelled([Panel(name, rgb) for name, rgb in zip(words, renders, strict=True)])
        with warning_instead(str(path)):
            save_png(path, strip)
        log_image(trainer, f"{split}/over_time", strip.numpy())


def significant_digits(times: Tensor) -> int:
    """How many digits tell evenly spaced times [n] apart: 3 or more, and no more than float32 has."""
    steps = times.double().diff().abs()
    if not bool((steps > 0).any()):
        return 3
    return min(9, max(3, 1 + math.ceil(math.log10(float(times.abs().max() / steps.max())))))


def _is_dynamic(pl_module: L.LightningModule, split: str) -> bool:
    """Whether the views of a split have times that the field wants."""
    module = trained(pl_module)
    scene = module.datamodule.scene(split)
    return scene.n_views > 0 and scene.cameras.times is not None and "times" in module.field.wants
