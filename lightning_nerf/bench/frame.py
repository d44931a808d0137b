"""Times one frame of a trained scene, ray generation included, over every k-th test view.

All other arguments are the recipe's, as for `lightning-nerf test`; the weights come from a checkpoint or from a fit here:
    lightning-nerf bench frame -c blender/instant_ngp --data.root path/to/lego --ckpt runs/.../last.ckpt
    lightning-nerf bench frame -c blender/instant_ngp --data.root path/to/lego --steps 5000

`ms` is device time on CUDA (median of the repeats), `wall_ms` the host's. `training_renderer_psnr` is that of the same
weights rendered as a training step does: all samples of a ray at once, nothing left out. `marched_per_ray` is how many
samples the estimator places before it asks for densities. `--times N` renders the first view of a moving scene at N times
back to back, and as often at each of three times alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import environment, median_seconds, peak_memory_gib, wait
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.cameras.cameras import Cameras, image_rays
from lightning_nerf.cli import build
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.types import Render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--ckpt", metavar="PATH", help="a checkpoint of this recipe")
    parser.add_argument("--steps", type=int, metavar="N", help="without a checkpoint: train this many steps first")
    parser.add_argument("--views-every", type=int, default=8, metavar="K", help="render every k-th test view; default 8")
    parser.add_argument("--repeats", type=int, default=5, help="of each view")
    parser.add_argument("--times", type=int, metavar="N", help="of a moving scene: also render N times back to back")


def run(options: argparse.Namespace, rest: Sequence[str]) -> Report:
    """The report."""
    if (options.ckpt is None) == (options.steps is None):
        sys.exit("lightning-nerf bench frame: expected either --ckpt PATH or --steps N")
    frames = FrameTimes(options.views_every, options.repeats, options.times)
    rest = [*rest, "--trainer.limit_test_batches=1"]  # all happens in the hook of the first
    if options.steps is not None:
        rest += [f"--trainer.max_steps={options.steps}", "--trainer.enable_checkpointing=false"]
    cli = build(rest, [frames])
    if options.steps is not None:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=options.ckpt, verbose=False)
    rows = frames.rows
    ms, wall = ([row[key] for row in rows] for key in ("ms", "wall_ms"))
    own, training = (statistics.mean(row[key] for row in rows) for key in ("psnr", "training_renderer_psnr"))
    return {
        "environment": environment(frames.device),
        "scene": cli.datamodule.scene_name,
        "views": rows,
        "size": frames.size,
        "median_ms": statistics.median(ms),
        "mean_ms": statistics.mean(ms),
        "median_wall_ms": statistics.median(wall),
        "psnr": own,
        "training_renderer_psnr": training,
        "psnr_difference": own - training,
        "largest_psnr_difference": max(abs(row["psnr"] - row["training_renderer_psnr"]) for row in rows),
        "marched_per_ray": statistics.mean(row["marched_per_ray"] for row in rows),
        "moving": frames.moving,
        "peak_memory_gib": frames.peak_memory_gib,
    }


class FrameTimes(L.Callback):
    """Renders views again and again within a test, whose device, precision and weights it so has."""

    def __init__(self, views_every: int, repeats: int, n_times: int | None = None) -> None:
        self.views_every, self.repeats, self.n_times = views_every, repeats, n_times
        self.rows: list[Report] = []
        self.moving: Report | None = None
        self.size = ""
        self.peak_memory_gib: float | None = None
        self.device = torch.device("cpu")

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """With the first batch: time and score all views."""
        if batch_idx > 0:
            return
        module = cast(NeRFModule, pl_module)
        device = self.device = module.device
        every = slice(None, None, self.views_every)
        scene = module.datamodule.scene("test")
        chosen, names = range(scene.n_views)[every], scene.names[every]
        cameras = scene.cameras.chosen(list(chosen)).to(device)
        shapes = [scene.cameras.shape(i) for i in chosen]  # known to the host, as in a test
        self.size = " x ".join(map(str, reversed(shapes[0])))
        background = module.eval_background()

        def frame(i: int) -> Render:
            return module.frames.frame(cameras, i, background, shapes[i])

        with trainer.precision_plugin.forward_context():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            for i, name in enumerate(names):
                ms = 1000 * median_seconds(lambda i=i: frame(i), device.type, self.repeats)
                begin = time.perf_counter()
                render = frame(i)
                wait(device)
                wall = time.perf_counter() - begin
                truth = scene.truth(chosen[i], background)
                self.rows.append({"view": name, "ms": ms, "wall_ms": 1000 * wall, "psnr": float(psnr(render.rgb, truth))})
                self.rows[-1]["marched_per_ray"] = marched_per_ray(module, cameras, i)
            if self.n_times is not None and cameras.times is not None:
                self.moving = frames_over_time(module, cameras, shapes[0], self.n_times)
            self.peak_memory_gib = peak_memory_gib(device)
            for i, row in enumerate(self.rows):
                truth = scene.truth(chosen[i], background)
                row["training_renderer_psnr"] = float(psnr(training_render(module, cameras, i, background), truth))


def marched_per_ray(module: NeRFModule, cameras: Cameras, index: int, rays_at_once: int = 2**15) -> float:
    """Samples that the estimator places before it asks for densities, per ray of one view."""
    rays, count = image_rays(cameras, index), 0
    for start in range(0, len(rays.origins), rays_at_once):
        part = rays.map(lambda t, start=start: t[start : start + rays_at_once])
        count += int(module.estimator.candidates(part).offsets[-1])
    return count / len(rays.origins)


def frames_over_time(module: NeRFModule, cameras: Cameras, shape: tuple[int, int], n: int) -> Report:
    """Wall milliseconds per frame of the first camera at n times back to back, and at the first, middle and last alone."""
    assert cameras.times is not None
    device, background = module.device, module.eval_background()
    span = torch.linspace(float(cameras.times.min()), float(cameras.times.max()), n, device=device)

    def wall_ms(times: Tensor) -> float:
        views = cameras.chosen([0] * n)._replace(times=times)
        wait(device)
        begin = time.perf_counter()
        for i in range(n):
            module.frames.frame(views, i, background, shape)
        wait(device)
        return 1000 * (time.perf_counter() - begin) / n

    wall_ms(span)  # warm
    alone = [wall_ms(span[i].expand(n)) for i in (0, n // 2, n - 1)]
    each = wall_ms(span)
    return {"times": n, "ms": each, "ms_at_one_time": alone, "ratio": each / statistics.mean(alone)}


def training_render(
    module: NeRFModule, cameras: Cameras, index: int, background: Tensor, rays_at_once: int = 2**15
) -> Tensor:
    """One view [H, W, 3] by the estimator, field and renderer of a training step."""
    rays, colors = image_rays(cameras, index), []
    for start in range(0, len(rays.origins), rays_at_once):
        part = rays.map(lambda t, start=start: t[start : start + rays_at_once])
        samples = module.estimator.place(part, module.field.query).samples
        output = RadianceField.at_samples(module.field, part, samples)  # point by point, whatever kernels the field has
        colors.append(module.renderer(output, samples, background=background).rgb)
    return torch.cat(colors).view(*cameras.shape(index), 3)
