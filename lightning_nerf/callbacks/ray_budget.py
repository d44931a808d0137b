"""Chooses how many rays a step takes."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.trained import TrainedModule, step_outputs, trained
from lightning_nerf.checks import check_integer, check_number
from lightning_nerf.ops.ray_budget import ray_budget_


class RayBudget(L.Callback):
    """Let the number of active rays follow a target number of samples per step, decided on the device.

    Every few steps: ``n_rays <- fill * capacity / (samples per ray that fitted)``, at most doubled or halved. The samples
    per ray vary from step to step by a few per cent, so a ``fill`` a little above 1 keeps the capacity full; the few rays
    that then don't fit are left out of their step's loss. With ``overfit_batches`` the number stays, so that batches do.

    Args:
        every_n_steps: steps between two decisions, >= 1.
        fill: target number of samples as a multiple of ``samples_per_step``, in (0, 2].
    """

    def __init__(self, every_n_steps: int = 4, fill: float = 1.03) -> None:
        check_integer("every_n_steps", every_n_steps, 1)
        check_number("fill", fill, "(0, 2]")
        self.every_n_steps = every_n_steps
        self.fill = fill
        self._latest: Tensor | None = None  # number of samples

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No step has said yet how many samples it had."""
        self._latest = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where nothing was trained on."""
        module = trained(pl_module)
        # The latest too: a training_step of the user's own may count none in `samples_seen`.
        if self._latest is not None and int(self._latest) == 0 and int(module.samples_seen) == 0:
            rank_zero_warn(
                f"no step had a sample to train on, the weights are as they were: either no ray meets the scene's box, or "
                f"samples_per_step = {module.samples_per_step} is less than the samples of one ray"
            )

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Set the next step's number of rays from this step's counts, without reading either on the host."""
        module, counts = trained(pl_module), step_outputs(outputs)
        self._latest = counts.get("n_samples")
        done = lightning_names.batches_done(trainer) + 1
        if lightning_names.overfit_batches(trainer) or done % self.every_n_steps != 0:
            return
        module.executor.run(
            "the ray budget", lambda *counts: self._decide(module, *counts), counts["n_samples"], counts["n_rays"]
        )

    def _decide(self, module: TrainedModule, samples: Tensor, rays: Tensor) -> None:
        target = self.fill * module.samples_per_step
        ray_budget_(module.n_rays, samples, rays, target=target, max_rays=module.max_rays)
