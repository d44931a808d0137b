"""Reads what a training step says of itself, without waiting for the step."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_nerf.callbacks.clock import TrainingClock
from lightning_nerf.callbacks.loggers import logged_step
from lightning_nerf.checks import check_integer


class Telemetry(TrainingClock):
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

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Forget a former run."""
        super().on_train_start(trainer, pl_module)
        self.latest, self._pending, self._last = {}, None, None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Publish an arrived copy; where due, start the next."""
        self._publish(trainer)
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        if step % self.every_n_steps != 0 or self._pending is not None:
            return
        now = self.seconds_so_far()
        seconds = (now - self._last[1]) / max(step - self._last[0], 1) if self._last else float("nan")
        self._last = (step, now)
        scalars = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 0}
        share = getattr(pl_module.estimator, "occupied_share", None)
        if share is not None:
            scalars["occupied"] = share()  # type: ignore[operator]
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
        self._pending = (logged_step(trainer), seconds)
        self._publish(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Wait for the last reading, which no further step would publish."""
        super().on_train_end(trainer, pl_module)
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
