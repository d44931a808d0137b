"""Reads what a training step says of itself, without waiting for the step."""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.trained import step_outputs, trained
from lightning_nerf.checks import check_integer


class Telemetry(L.Callback):
    """Log loss, PSNR of the training rays, rays/s, samples/s, occupied share, learning rate, every ``every_n_steps``.

    Rays/s and samples/s are those of this process, over training alone: validation and checkpoints do not count.
    ``train/skipped_steps`` counts updates that were not made, because a gradient was not finite or no batch had samples.

    ``self.log`` of a device tensor makes the progress bar wait for the device. Here the step's scalars are copied to pinned
    host memory behind the step, and what is logged is the newest copy that has already arrived (on a CPU: at once). The
    numbers are therefore a few steps old; ``latest`` holds them for the progress bar.

    Args:
        every_n_steps: steps between two readings, >= 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_integer("every_n_steps", every_n_steps, 1)
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self._names: list[str] = []
        self._host: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._pending: tuple[int, float] | None = None  # logged step and seconds per step of the copy under way
        self._last: tuple[int, float] | None = None  # step and clock of the last reading

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a former run."""
        self.latest, self._pending, self._last = {}, None, None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Publish an arrived copy; where due, start the next."""
        self._publish(trainer)
        step = lightning_names.batches_done(trainer)
        if step % self.every_n_steps != 0 or self._pending is not None:
            return
        now = clock_of(trainer).seconds_so_far()
        seconds = (now - self._last[1]) / max(step - self._last[0], 1) if self._last else float("nan")
        self._last = (step, now)
        scalars = {
            name: value for name, value in step_outputs(outputs).items() if isinstance(value, Tensor) and value.ndim == 0
        }
        if (share := trained(pl_module).estimator.occupied_share()) is not None:
            scalars["occupied"] = share
        skipped = getattr(trainer.optimizers[0], "skipped", None)
        if skipped is not None:
            scalars["skipped_steps"] = skipped
        if "loss" in scalars:
            scalars["loss"] = scalars["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        self._names = list(scalars)
        values = torch.stack([v.detach().float() for v in scalars.values()])
        if values.is_cuda:
            if self._host is None or len(self._host) != len(values):
                self._host = torch.empty(len(values), pin_memory=True)
                self._event = torch.cuda.Event()
            self._host.copy_(values, non_blocking=True)
            self._event.record()  # type: ignore[union-attr]
        else:
            self._host = values
        self._pending = (lightning_names.logged_step(trainer), seconds)
        self._publish(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last reading, which no further step would publish."""
        if self._pending is not None and self._event is not None:
            self._event.synchronize()
        self._publish(trainer)

    def _publish(self, trainer: L.Trainer) -> None:
        if self._pending is None or self._host is None or (self._event is not None and not self._event.query()):
            return
        step, seconds = self._pending
        self._pending = None
        read = dict(zip(self._names, self._host.tolist(), strict=True))
        metrics = {f"train/{name}": value for name, value in read.items()}
        if read.get("mse", 0.0) > 0:
            metrics["train/psnr"] = -10 * math.log10(read["mse"])
        if seconds == seconds and seconds > 0:
            metrics["train/ms_per_step"] = 1000 * seconds
            metrics["train/rays_per_second"] = read.get("n_rays", 0.0) / seconds
            metrics["train/samples_per_second"] = read.get("n_samples", 0.0) / seconds
        metrics["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.latest = metrics
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
