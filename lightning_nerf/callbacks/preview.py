"""Shows how a run is coming along."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.image_logger import save_png, view_picture
from lightning_nerf.callbacks.loggers import log_image, warning_instead
from lightning_nerf.callbacks.quality_marks import evaluation
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.checks import BadArgument, check_integer, check_number

SHARE = 0.1  # of the time, at most, that previews take


class Preview(WritesRunFiles):
    """Render one held-out view every some seconds of a fit, beside its truth, as ``preview.png`` in the run folder.

    The file always holds the newest; loggers that take pictures get each as ``preview/{view}``. The training clock stands
    still meanwhile, weights and random states are afterwards as before, and the weights are those that evaluation uses, as
    with :class:`QualityMarks`. Where a view takes long, previews come less often: they take a tenth of the time at most.

    No recipe has it, since it costs that time: ``--trainer.callbacks+=lightning_nerf.callbacks.Preview``.

    >>> from lightning_nerf.callbacks import Preview
    >>> Preview(every_seconds=60).view
    0

    Args:
        every_seconds: between two previews, > 0.
        view: its number within the split.
        split: "test", "val" or "train".
    """

    def __init__(self, every_seconds: float = 20.0, view: int = 0, split: str = "test") -> None:
        check_number("every_seconds", every_seconds, "(0, inf)")
        check_integer("view", view, 0)
        if split not in ("test", "val", "train"):
            raise BadArgument(f'split: expected "test", "val" or "train", got {split!r}')
        self.every_seconds = every_seconds
        self.view = view
        self.split = split
        self._folder = Path()
        self._due = float("inf")  # host time of the next

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the view before the clock starts."""
        n_views = trained(pl_module).datamodule.scene(self.split).n_views
        if self.view >= n_views:
            raise BadArgument(f"view: expected one of the {n_views} views of the {self.split} split, got {self.view}")
        self._folder = run_folder(trainer)  # on every rank: it asks rank 0
        self._due = time.monotonic() + self.every_seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Render where it is due; rank 0 alone, the others wait in their next step."""
        start = time.monotonic()
        if not trainer.is_global_zero or start < self._due:
            return
        clock = clock_of(trainer)
        clock.halt()
        with warning_instead("preview"):
            self._show(trainer, pl_module)
        clock.resume()
        end = time.monotonic()
        self._due = end + max(self.every_seconds, (end - start) * (1 / SHARE - 1))

    @torch.no_grad()
    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = trained(pl_module)
        scene = module.datamodule.scene(self.split)
        with evaluation(trainer, pl_module):
            render = module.render_view(self.split, self.view)
        truth = scene.truth(self.view, module.eval_background())
        picture = view_picture(render, truth, module.estimator)
        save_png(self._folder / "preview.png", picture)
        log_image(trainer, f"preview/{scene.names[self.view]}", picture.numpy())
