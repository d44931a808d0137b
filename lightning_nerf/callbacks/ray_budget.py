"""Chooses how many rays a step takes."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.host_copy import HostCopy
from lightning_nerf.callbacks.no_samples import why_no_samples
from lightning_nerf.callbacks.trained import TrainedModule, step_outputs, trained
from lightning_nerf.checks import check_integer, check_number
from lightning_nerf.ops.ray_budget import ray_budget_
from lightning_nerf.types import RayBatch, Rays

PATIENCE = 8  # steps without a sample before that is said; a young field may have some


class RayBudget(L.Callback):
    """Let the number of active rays follow a target number of samples per step, decided on the device.

    Every few steps: ``n_rays <- fill * capacity / (samples per ray that fitted)``, at most doubled or halved. The samples
    per ray vary from step to step by a few per cent, so a ``fill`` a little above 1 keeps the capacity full; the few rays
    that then don't fit are left out of their step's loss. With ``overfit_batches`` the number stays, so that batches do.

    Warns, once, of a fit whose first steps had no sample at all, and says why.

    Args:
        every_n_steps: steps between two decisions, >= 1.
        fill: target number of samples as a multiple of ``samples_per_step``, in (0, 2].
    """

    def __init__(self, every_n_steps: int = 4, fill: float = 1.03) -> None:
        check_integer("every_n_steps", every_n_steps, 1)
        check_number("fill", fill, "(0, 2]")
        self.every_n_steps = every_n_steps
        self.fill = fill
        self._copy = HostCopy()  # of the samples of all steps so far, and of the newest
        self._steps = 0  # of this fit
        self._unsure = False  # whether no step is known to have had a sample
        self._last: tuple[Tensor, Rays | None] | None = None  # number of samples; rays of a loader of the user's

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No step has said yet how many samples it had."""
        self._copy, self._last, self._unsure, self._steps = HostCopy(), None, True, 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn of a fit that was too short for a warning on its way."""
        if self._unsure and self._last is not None:
            self._copy.take(wait=True)
            self._count(trained(pl_module))
            self._warn_without_samples(trained(pl_module), wait=True)
        self._last = None

    def _count(self, module: TrainedModule) -> None:
        # The newest too: a training_step of the user's own may count none in `samples_seen`.
        if self._last is not None:
            self._copy.start([module.samples_seen, self._last[0]])

    def _warn_without_samples(self, module: TrainedModule, wait: bool = False) -> None:
        """Once, as soon as the numbers of a step have arrived."""
        counts = self._copy.take(wait)
        if counts is None:
            return
        self._unsure = False
        if sum(counts) == 0:
            rays = None if self._last is None else self._last[1]
            rank_zero_warn(
                f"no step had a sample to train on, the weights stay as they are: {why_no_samples(module, rays)}"
            )

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Set the next step's number of rays from this step's counts, without reading either on the host."""
        module, counts = trained(pl_module), step_outputs(outputs)
        if self._unsure and "n_samples" in counts:
            self._steps += 1
            self._last = counts["n_samples"], batch.rays if isinstance(batch, RayBatch) else None
            if self._steps == PATIENCE:
                self._count(module)
            self._warn_without_samples(module)
        done = lightning_names.batches_done(trainer) + 1
        if lightning_names.overfit_batches(trainer) or done % self.every_n_steps != 0:
            return
        module.executor.run(
            "the ray budget", lambda *counts: self._decide(module, *counts), counts["n_samples"], counts["n_rays"]
        )

    def _decide(self, module: TrainedModule, samples: Tensor, rays: Tensor) -> None:
        target = self.fill * module.samples_per_step
        ray_budget_(module.n_rays, samples, rays, target=target, max_rays=module.max_rays)
