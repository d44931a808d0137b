"""Logs the scalars of training steps without waiting for the device."""

from __future__ import annotations

import math
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.host_copy import HostCopy
from lightning_nerf.callbacks.trained import step_outputs, trained
from lightning_nerf.checks import check_integer

SAVE_SECONDS = 2.0  # between two savings of metrics.csv, at least


class Telemetry(L.Callback):
    """Log loss, PSNR of the training rays, rays/s, samples/s, occupied share, learning rate, every ``every_n_steps``.

    The numbers go to all loggers and to ``trainer.callback_metrics``, so that ``ModelCheckpoint(monitor="train/psnr")`` and
    ``EarlyStopping`` find them; a CSVLogger's ``metrics.csv`` is written at the first reading, then every two seconds at
    most. Rays/s and samples/s are those of this process, over training alone: validation and checkpoints do not count.
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
        self._copy = HostCopy()
        self._of: tuple[int, float] = (0, 0.0)  # logged step and seconds per step of the copy under way
        self._last: tuple[int, float] | None = None  # step and clock of the last reading
        self._saved: float | None = None  # host time at which metrics.csv was last written

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a former run; say where early stopping would never be asked."""
        self.latest, self._last, self._saved = {}, None, None
        self._copy = HostCopy()
        ends = trainer.num_training_batches != float("inf")
        if ends or sum(trainer.num_val_batches):
            return
        for callback in lightning_names.callbacks(trainer):
            if isinstance(callback, EarlyStopping):
                rank_zero_warn(
                    f"{type(callback).__name__}(monitor={callback.monitor!r}) looks at its metric after a validation or an "
                    "epoch, and this fit has neither before its end: give the Trainer val_check_interval=1000 and "
                    "limit_val_batches=1, or the like"
                )

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Publish an arrived copy; where due, start the next."""
        self._publish(trainer)
        step = lightning_names.batches_done(trainer)
        if step % self.every_n_steps != 0 or self._copy.is_pending:
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
        self._copy.start(list(scalars.values()))
        self._of = (lightning_names.logged_step(trainer), seconds)
        self._publish(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last reading, which no further step would publish."""
        self._publish(trainer, wait=True)

    def _publish(self, trainer: L.Trainer, wait: bool = False) -> None:
        values = self._copy.take(wait)
        if values is None:
            return
        step, seconds = self._of
        read = dict(zip(self._names, values, strict=True))
        metrics = {f"train/{name}": value for name, value in read.items()}
        if read.get("mse", 0.0) > 0:
            metrics["train/psnr"] = -10 * math.log10(read["mse"])
        if seconds == seconds and seconds > 0:
            metrics["train/ms_per_step"] = 1000 * seconds
            metrics["train/rays_per_second"] = read.get("n_rays", 0.0) / seconds
            metrics["train/samples_per_second"] = read.get("n_samples", 0.0) / seconds
        metrics["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.latest = metrics
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """Write ``metrics.csv``. By itself a CSVLogger writes each hundred steps and at the end; a kill loses the rest."""
        now = time.monotonic()
        if self._saved is None or now - self._saved >= SAVE_SECONDS:
            self._saved = now
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.save()
