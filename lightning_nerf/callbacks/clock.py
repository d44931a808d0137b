"""Measures training itself: what else a run does in between does not count."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch


class TrainingClock(L.Callback):
    """Seconds and peak memory of training, from the first to the last step; the base of callbacks that report them.

    Stands still from a validation or the writing of a checkpoint to the next step, and whenever a callback that does
    something else calls :func:`halt_clocks`. The device is waited for where the clock starts and halts, and nowhere else.
    Loading does not count.

    ``training_seconds`` and ``peak_memory_gib`` (``max_memory_allocated``; None on a CPU) are None before training.
    """

    training_seconds: float | None = None
    peak_memory_gib: float | None = None
    _started: float | None = None

    def resume(self, pl_module: Any) -> None:
        """Let the clock go on."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._started = time.perf_counter()

    def halt(self, pl_module: Any) -> None:
        """Halt the clock, if it runs."""
        if self._started is None:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            self.peak_memory_gib = max(self.peak_memory_gib or 0.0, peak)
        self.training_seconds = self.seconds_so_far()
        self._started = None

    def seconds_so_far(self) -> float:
        """By the host's clock, which may be a few steps ahead of the device."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return (self.training_seconds or 0.0) + running

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Start from zero."""
        self.training_seconds, self.peak_memory_gib = 0.0, None
        pl_module.datamodule.lend(pl_module.device)  # loading does not count
        self.resume(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Halt the clock."""
        self.halt(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Halt the clock."""
        self.halt(pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let the clock go on, if it was halted."""
        if self._started is None:
            self.resume(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Halt the clock for good."""
        self.halt(pl_module)


def halt_clocks(trainer: L.Trainer, pl_module: Any) -> None:
    """Halt every clock of a Trainer."""
    for clock in _clocks(trainer):
        clock.halt(pl_module)


def resume_clocks(trainer: L.Trainer, pl_module: Any) -> None:
    """Let every clock of a Trainer go on."""
    for clock in _clocks(trainer):
        clock.resume(pl_module)


def _clocks(trainer: L.Trainer) -> list[TrainingClock]:
    return [c for c in trainer.callbacks if isinstance(c, TrainingClock)]  # type: ignore[attr-defined]
