"""Scores a run at marks of training time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.progress import shown
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.checks import BadArgument, check_instance, check_integer, check_number


class QualityMarks(L.Callback):
    """Render some test views after given seconds of training, and at its end; ``results.json`` takes in the scores.

    Training seconds count from the first step, CUDA-graph capture included, evaluation and loading not. Whether a mark has
    been reached is asked of the host's clock, without waiting for the device; there the device is waited for, the exact
    time and step are noted, and the clock stands still until the views are rendered, with the weights that evaluation
    uses: the moving average, if there is a callback with a context manager ``averaged(pl_module, trainer)``, such as
    ``EMAWeights``. Weights, modes of modules and random states are afterwards as before. Rank 0 evaluates; other processes
    wait for it in their next step.

    Args:
        marks_seconds: when, in ascending order; those that the run does not reach are left out.
        views_every: score views 0, k, 2k, ... of the split. The mean of their PSNR, see :func:`.psnr.psnr`.
        split: "test", or "val" to choose settings without a look at test views.

    Attributes:
        scores: a row for each mark: mark (None: the end), seconds, step, psnr.
    """

    def __init__(
        self, marks_seconds: Sequence[float] = (1, 2, 5, 10, 15, 30, 60), views_every: int = 8, split: str = "test"
    ) -> None:
        check_instance("marks_seconds", marks_seconds, Sequence)
        for i, mark in enumerate(marks_seconds):
            check_number(f"marks_seconds[{i}]", mark, "(0, inf)")
        if any(not a < b for a, b in pairwise(marks_seconds)):
            raise BadArgument(f"marks_seconds: expected ascending numbers > 0, got {list(marks_seconds)}")
        check_integer("views_every", views_every, 1)
        if split not in ("test", "val"):
            raise BadArgument(f'split: expected "test" or "val", got {split!r}')
        self.marks_seconds = tuple(marks_seconds)
        self.views_every = views_every
        self.split = split
        self.scores: list[dict[str, float | int | None]] = []
        self._ahead: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the views before the clock starts."""
        self.scores, self._ahead = [], list(self.marks_seconds)
        if not trained(pl_module).datamodule.scene(self.split).n_views:
            raise BadArgument(f"{type(self).__name__}: the {self.split} split has no views")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Evaluate if a mark has been reached."""
        clock = clock_of(trainer)
        if not self._ahead or not trainer.is_global_zero or clock.seconds_so_far() < self._ahead[0]:
            return
        clock.halt()
        reached = [mark for mark in self._ahead if mark <= (clock.training_seconds or 0.0)]
        self._ahead = self._ahead[len(reached) :]
        self._score(trainer, pl_module, reached)
        clock.resume()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final weights."""
        clock_of(trainer).halt()
        if trainer.is_global_zero:
            self._score(trainer, pl_module, [None])

    def _score(self, trainer: L.Trainer, pl_module: L.LightningModule, marks: Sequence[float | None]) -> None:
        step, value = trainer.global_step, self.evaluate(trainer, pl_module)
        seconds = clock_of(trainer).training_seconds
        for mark in marks:
            self.scores.append({"mark": mark, "seconds": seconds, "step": step, "psnr": value})
        for logger in trainer.loggers:
            logger.log_metrics({"marks/psnr": value, "marks/seconds": seconds or 0.0}, step=step)

    @torch.no_grad()
    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float:
        """Mean PSNR of every k-th view with the weights that evaluation uses; training goes on as if it had not been."""
        module = trained(pl_module)
        scene, scores = module.datamodule.scene(self.split), []
        with evaluation(trainer, pl_module):
            background = module.eval_background()
            views = range(0, scene.n_views, self.views_every)
            for i in shown(trainer, views, f"views of {self.split}", "view", leave=False):
                scores.append(psnr(module.render_view(self.split, i).rgb, scene.truth(i, background)))
        return float(torch.stack(scores).mean())


@contextmanager
def evaluation(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Evaluation within training: mode, precision and averaged weights as in validation, all put back afterwards."""
    modes = [(module, module.training) for module in pl_module.modules()]
    cuda = pl_module.device.type == "cuda"
    try:
        pl_module.eval()
        with (
            isolate_rng(include_cuda=cuda),
            averaged_weights(trainer, pl_module),
            trainer.precision_plugin.forward_context(),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training


def averaged_weights(trainer: L.Trainer, pl_module: L.LightningModule) -> AbstractContextManager[None]:
    """The context of the first callback that keeps averaged weights; without one, the weights as they are."""
    for callback in lightning_names.callbacks(trainer):
        averaged = getattr(callback, "averaged", None)
        if averaged is not None:
            return averaged(pl_module, trainer)
    return nullcontext()
