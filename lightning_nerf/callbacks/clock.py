"""The Trainer's clock of training: what else a run does in between does not count."""

from __future__ import annotations

import time

import lightning as L
import torch

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.recorded import Plain


class TrainingClock(L.Callback):
    """Seconds and peak memory of training, from the first to the last step; one for each Trainer, see :func:`clock_of`.

    Stands still from a validation or the writing of a checkpoint to the next step, and whenever a callback that does
    something else halts it. The device is waited for where the clock starts and halts, and nowhere else. Loading does not
    count. A module adds a clock to its Trainer by itself.

    ``training_seconds`` and ``peak_memory_gib`` (``max_memory_allocated``; None on a CPU) are None before training.

    >>> from lightning_nerf.callbacks import TrainingClock
    >>> TrainingClock().training_seconds is None
    True
    """

    training_seconds: float | None = None
    peak_memory_gib: float | None = None
    _started: float | None = None
    _device = torch.device("cpu")

    def resume(self) -> None:
        """Let the clock go on."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = time.perf_counter()

    def halt(self) -> None:
        """Halt the clock, if it runs."""
        if self._started is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device) / 2**30
            self.peak_memory_gib = max(self.peak_memory_gib or 0.0, peak)
        self.training_seconds = self.seconds_so_far()
        self._started = None

    def seconds_so_far(self) -> float:
        """By the host's clock, which may be a few steps ahead of the device."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return (self.training_seconds or 0.0) + running

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the views on the device: loading does not count."""
        self.training_seconds, self.peak_memory_gib, self._started = None, None, None
        self._device = pl_module.device
        trained(pl_module).datamodule.scene_on(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from zero."""
        self.training_seconds = 0.0
        self.resume()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Halt the clock."""
        self.halt()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """Halt the clock."""
        self.halt()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int) -> None:
        """Let the clock go on, if it was halted."""
        if self._started is None:
            self.resume()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Halt the clock for good."""
        self.halt()


def clock_of(trainer: L.Trainer) -> TrainingClock:
    """The Trainer's clock, the same for all who ask; made if there is none.

    It comes before all other callbacks: it halts before they write or evaluate, and goes on before they work for a step.
    """
    given = lightning_names.callbacks(trainer)
    clock = next((callback for callback in given if isinstance(callback, TrainingClock)), None) or TrainingClock()
    if not given or given[0] is not clock:
        # A new list: the Trainer may be in the middle of the old one.
        lightning_names.set_callbacks(trainer, [clock, *(callback for callback in given if callback is not clock)])
    return clock
