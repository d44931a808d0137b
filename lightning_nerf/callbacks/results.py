"""Writes what a run reached."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.data.views import image_truth


class RunResults(L.Callback):
    """Measure training time and, after a test, write ``results.json`` in the run folder.

    Keys: recipe, scene, split, images, psnr, ssim, steps, training_seconds (without evaluation and loading), ms_per_step,
    samples_per_second (with gradient), fill (mean share of ``samples_per_step``), peak_memory_gib (training; null on a
    CPU), device, versions, seed, psnr_per_image, psnr_of_mean_image (what predicting the mean training image scores). What
    a process did not measure (training, in a mere ``test``) is null.

    Args:
        recipe: name to record.
    """

    def __init__(self, recipe: str | None = None) -> None:
        self.recipe = recipe
        self.training_seconds: float | None = None
        self._started: float | None = None
        self._samples: Tensor | None = None
        self._first_step = 0
        self._steps: int | None = None
        self._peak: float | None = None
        self._psnr: dict[str, float] = {}

    # -- the clock: runs from the first to the last training step, stands still during validation ---------------------

    def _start(self, pl_module: Any) -> None:
        _wait(pl_module)
        self._started = time.perf_counter()

    def _stop(self, pl_module: Any) -> None:
        if self._started is not None:
            _wait(pl_module)
            self.training_seconds = (self.training_seconds or 0.0) + time.perf_counter() - self._started
            self._started = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self.training_seconds = 0.0
        self._samples = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self._first_step = trainer.global_step
        pl_module.datamodule.lend(pl_module.device)  # loading does not count
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._start(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count samples, on the device."""
        self._samples += outputs["n_samples"]  # type: ignore[operator]

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Halt the clock."""
        self._stop(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Let the clock go on, if this validation was within a training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._start(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Halt the clock for good."""
        self._stop(pl_module)
        self._steps = trainer.global_step - self._first_step
        if pl_module.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**30

    # -- the score ----------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Forget a former test."""
        self._psnr = {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note a view's PSNR."""
        self._psnr[str(outputs["name"])] = float(psnr(outputs["render"].rgb, outputs["truth"]))

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write results.json, whole or not at all."""
        path = run_folder(trainer) / "results.json"  # on every rank: it asks rank 0
        if not trainer.is_global_zero:
            return
        draft = path.with_suffix(".json.tmp")
        draft.write_text(json.dumps(self._results(trainer, pl_module), indent=2) + "\n")
        os.replace(draft, path)

    def _results(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        seconds, steps = self.training_seconds, self._steps
        per_step = samples_per_second = fill = None
        if seconds and steps and self._samples is not None:
            samples = int(self._samples)
            per_step, samples_per_second = 1000 * seconds / steps, samples / seconds
            fill = samples / steps / pl_module.samples_per_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        datamodule = pl_module.datamodule
        return {
            "recipe": self.recipe,
            "scene": datamodule.scene_name,
            "split": "test",
            "images": len(self._psnr),
            "psnr": metrics.get("test/psnr", sum(self._psnr.values()) / max(len(self._psnr), 1)),
            "ssim": metrics.get("test/ssim"),
            "psnr_of_mean_image": _mean_image_psnr(pl_module),
            "steps": steps,
            "training_seconds": seconds,
            "ms_per_step": per_step,
            "samples_per_second": samples_per_second,
            "fill": fill,
            "peak_memory_gib": self._peak,
            "device": _device_name(pl_module.device),
            "versions": _versions(),
            "seed": int(pl_module.key[0]),
            "psnr_per_image": self._psnr,
        }


def _wait(pl_module: Any) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str | None]:
    return {
        "lightning_nerf": _own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "lightning": L.__version__,
    }


def _own_version() -> str | None:
    try:
        return importlib.metadata.version("lightning-nerf")
    except importlib.metadata.PackageNotFoundError:  # a source checkout that was not installed
        return None


def _mean_image_psnr(pl_module: Any) -> float | None:
    """Mean over the test views of the PSNR of the mean training image, or None where the sizes differ."""
    datamodule: Any = pl_module.datamodule
    background = pl_module.eval_background().cpu()
    try:
        train, test = datamodule.views("train").images, datamodule.views("test").images
    except FileNotFoundError:  # a mere test needs no training pictures
        return None
    if not len(train) or not len(test) or train.shape[1:3] != test.shape[1:3]:
        return None
    mean = torch.zeros(*train.shape[1:3], 3)
    for image in train:
        mean += image_truth(image, background) / len(train)
    return float(torch.stack([psnr(mean, image_truth(image, background)) for image in test]).mean())
