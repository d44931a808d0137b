"""Trains a recipe once and scores it at marks of training seconds, then at its end over all test views.

All other arguments are the recipe's, as for `lightning-nerf fit`:
    lightning-nerf bench quality -c blender/instant_ngp --data.root path/to/lego --marks 2.5 5 15 60

Training seconds count from the first step, CUDA-graph capture included, evaluation and loading not. PSNR is the mean of the
views' own, of float renders against float truth, with the weights that evaluation uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_nerf import lightning_names
from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import environment
from lightning_nerf.callbacks import QualityMarks
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.trained import TrainedModule, trained, view_outputs
from lightning_nerf.cameras.cameras import image_rays
from lightning_nerf.cli import build
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.ops.march import march
from lightning_nerf.ops.visibility import prune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--marks", type=float, nargs="+", default=[1, 2, 5, 10, 15, 30, 60], metavar="SECONDS")
    parser.add_argument("--views-every", type=int, default=8, metavar="K", help="score every k-th view at marks; default 8")


def run(options: argparse.Namespace, rest: Sequence[str]) -> Report:
    """The report."""
    marks, findings = QualityMarks(sorted(options.marks), options.views_every), TestFindings()
    cli = build(rest, [marks, findings])
    trainer, model, datamodule = cli.trainer, cli.model, cli.datamodule
    given = lightning_names.callbacks(trainer)
    lightning_names.set_callbacks(trainer, [c for c in given if c is marks or not isinstance(c, QualityMarks)])
    trainer.fit(model, datamodule=datamodule)
    steps = trainer.global_step
    trainer.test(model, datamodule=datamodule, verbose=False)
    values = findings.psnr
    clock = clock_of(trainer)
    ssim = trainer.callback_metrics.get("test/ssim")
    return {
        "environment": environment(findings.device),
        "scene": datamodule.scene_name,
        "marks": [{**row, "mark": "end" if row["mark"] is None else f"{row['mark']:g} s"} for row in marks.scores],
        "psnr": _mean(values),
        "views": len(values),
        f"psnr_every_{options.views_every}": _mean(values[:: options.views_every]),
        "ssim": None if ssim is None else float(ssim),
        "steps": steps,
        "training_seconds": clock.training_seconds,
        "ms_per_step": 1000 * (clock.training_seconds or 0.0) / max(1, steps),
        "peak_memory_gib": clock.peak_memory_gib,
        **findings.skipped,
    }


class TestFindings(L.Callback):
    """Each test view's PSNR, and the share of samples skipped in the first."""

    def __init__(self) -> None:
        self.psnr: list[float] = []
        self.skipped: Report = {}
        self.device = torch.device("cpu")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note a view."""
        view = view_outputs(outputs)
        self.psnr.append(float(psnr(view["render"].rgb, view["truth"])))
        if batch_idx == 0:
            self.device = pl_module.device
            if isinstance(trained(pl_module).estimator, OccupancyGrid):
                with trainer.precision_plugin.forward_context():
                    self.skipped = {"samples of the first view": skipped(trained(pl_module))}


@torch.no_grad()
def skipped(module: TrainedModule, index: int = 0) -> dict[str, float]:
    """Of a uniform march's samples over one whole test view, how many the grid leaves, and then visibility."""
    grid = module.estimator
    assert isinstance(grid, OccupancyGrid)
    datamodule = module.datamodule
    rays = image_rays(datamodule.scene("test").cameras, index)
    uniform = marched = visible = 0
    for start in range(0, len(rays.origins), 2**16):
        part = rays.map(lambda t, start=start: t[start : start + 2**16].to(module.device))
        everywhere, step = grid.blank().binaries, grid.render_step_size
        uniform += len(march(part, everywhere, grid.aabb, step_size=step, cone_angle=grid.cone_angle).t_starts)
        samples = grid.candidates(part)
        marched += len(samples.t_starts)
        densities = module.field.query(part, samples).values
        left = prune(densities, samples, early_stop_eps=grid.early_stop_eps, alpha_thre=grid.alpha_threshold)
        visible += len(left.t_starts)
    return {
        "uniform": uniform,
        "grid": marched,
        "visible": visible,
        "skipped_by_grid": 1 - marched / max(1, uniform),
        "skipped_in_all": 1 - visible / max(1, uniform),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
