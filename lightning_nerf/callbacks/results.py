"""Writes what a run reached."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.quality_marks import QualityMarks
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import TrainedModule, trained, view_outputs
from lightning_nerf.callbacks.view_scores import psnr_per_time, scores_of_all_ranks
from lightning_nerf.files import whole_file

TRAINING = (
    "steps", "training_seconds", "ms_per_step", "samples_per_second", "fill", "peak_memory_gib", "quality_marks",
)  # fmt: skip


class RunResults(WritesRunFiles):
    """After a test, write ``results.json`` in the run folder.

    Keys: recipe, scene, split, images, background, psnr, ssim, steps, training_seconds (without evaluation and loading),
    ms_per_step, samples_per_second (with gradient), fill (mean share of ``samples_per_step``), peak_memory_gib (training;
    null on a CPU), device, versions, seed, psnr_per_image, psnr_of_mean_image (what predicting the mean training image
    scores), quality_marks (the rows of :class:`QualityMarks`, if that is among the callbacks) and, where the views have
    times, psnr_per_time (:func:`.view_scores.psnr_per_time`; null where training has one moment alone). Views and samples
    are those of all processes. Where a fit did not train (a mere ``test``), its figures are those of the file in the
    folder, else null.

    Args:
        recipe: name to record.
    """

    def __init__(self, recipe: str | None = None) -> None:
        self.recipe = recipe
        self._samples: Tensor | None = None
        self._first_step = 0
        self._steps: int | None = None
        self._psnr: dict[str, float] = {}

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the count of samples."""
        trained(pl_module).samples_seen.zero_()
        self._first_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take down what was trained."""
        self._samples = trainer.strategy.reduce(trained(pl_module).samples_seen.clone(), reduce_op="sum")  # type: ignore[assignment]
        self._steps = trainer.global_step - self._first_step

    # -- the score ----------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a former test."""
        self._psnr = {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note a view's PSNR."""
        view = view_outputs(outputs)
        self._psnr[str(view["name"])] = float(psnr(view["render"].rgb, view["truth"]))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write results.json, whole or not at all."""
        path = run_folder(trainer) / "results.json"  # on every rank: it asks rank 0
        self._psnr = scores_of_all_ranks(self._psnr, trainer)
        if not trainer.is_global_zero:
            return
        results = self._results(trainer, trained(pl_module))
        if self._steps is None:
            results.update(_trained_before(path))
        text = json.dumps(results, indent=2) + "\n"
        with whole_file(path) as file:
            file.write(text.encode())

    def _results(self, trainer: L.Trainer, module: TrainedModule) -> dict[str, object]:
        clock, steps = clock_of(trainer), self._steps
        seconds = clock.training_seconds
        per_step = samples_per_second = fill = None
        if seconds and steps and self._samples is not None:
            samples = int(self._samples)
            per_step, samples_per_second = 1000 * seconds / steps, samples / seconds
            fill = samples / steps / trainer.world_size / module.samples_per_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        datamodule = module.datamodule
        return {
            "recipe": self.recipe,
            "scene": datamodule.scene_name,
            "split": "test",
            "images": len(self._psnr),
            "background": datamodule.eval_background,
            "psnr": sum(self._psnr.values()) / max(len(self._psnr), 1),
            "ssim": metrics.get("test/ssim"),
            "psnr_of_mean_image": _mean_image_psnr(module),
            "steps": steps,
            "training_seconds": seconds,
            "ms_per_step": per_step,
            "samples_per_second": samples_per_second,
            "fill": fill,
            "peak_memory_gib": clock.peak_memory_gib,
            "device": _device_name(module.device),
            "versions": _versions(),
            "seed": int(module.key[0]),
            "quality_marks": next(
                (c.scores for c in lightning_names.callbacks(trainer) if isinstance(c, QualityMarks)), None
            ),
            "psnr_per_image": self._psnr,
            **_over_time(module, self._psnr),
        }


def _over_time(module: TrainedModule, scores: dict[str, float]) -> dict[str, object]:
    """``psnr_per_time``, where the test views have times; null where training views are one moment, without parts."""
    bins = psnr_per_time(module.datamodule.scene("test"), scores, module.field)
    if not bins:
        return {}
    rows = {b.name: {"from": b.first, "to": b.last, "images": b.n_views, "psnr": b.psnr} for b in bins}
    return {"psnr_per_time": rows if bins[0].first < bins[-1].last else None}


def _trained_before(path: Path) -> dict[str, object]:
    """What the file says of training, if it is there."""
    try:
        before = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {name: before[name] for name in TRAINING if name in before}


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


def _mean_image_psnr(module: TrainedModule) -> float | None:
    """Mean over the test views of the PSNR of the mean training image, or None where the sizes differ."""
    background = module.eval_background().cpu()
    try:
        train, test = (module.datamodule.scene(split) for split in ("train", "test"))
    except FileNotFoundError:  # a mere test needs no training pictures
        return None
    sizes = torch.cat([train.cameras.size, test.cameras.size])
    if not train.n_views or not test.n_views or not bool((sizes == sizes[0]).all()):
        return None
    mean = torch.zeros(*train.cameras.shape(0), 3, dtype=torch.float32)
    for i in range(train.n_views):
        mean += train.truth(i, background) / train.n_views
    return float(torch.stack([psnr(mean, test.truth(i, background)) for i in range(test.n_views)]).mean())
