"""Trains a recipe through Trainer.fit and times its steps, everything included: grid updates, telemetry, progress bar.

All other arguments are the recipe's, as for `lightning-nerf fit`:
    lightning-nerf bench step -c blender/instant_ngp --data.root path/to/lego --profile

The device is waited for at the window's two ends only. `first_step_seconds` runs from the entry of Trainer.fit to the end
of the first step, data loaded before. `lightning_share` is 1 - (summed kernel time) / (wall time of a step).
With several processes (--trainer.devices=2 --trainer.strategy=nerf_cuda_graph_ddp) rays and samples per second are those of
all of them, all else is the first one's, and at the end weights, moments and grids are compared to the bit.
--sweep repeats a short run with a growing number of samples (2^14 to 2^22, with a quarter as many rays at most), rows of
the hash table (2^19 to 2^24) or training images (some of the scene's, repeated as needed).
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf.bench.kernels import kernel_table, profiler
from lightning_nerf.bench.processes import compare, total
from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import environment, median_seconds, peak_memory_gib, reserved_memory_gib, wait
from lightning_nerf.callbacks.trained import step_outputs
from lightning_nerf.cli import NeRFCLI, build
from lightning_nerf.data import Images, NeRFDataModule, Scene
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.ops.sample_points import sample_points

PROFILED_STEPS = 32  # two of the grid's updates
READ_EVERY = 32
SWEEPS = {
    "samples": [2**i for i in range(14, 23)],
    "table": list(range(19, 25)),
    "images": [10, 25, 50, 100, 200, 400, 800],
}
Splits = dict[str, Scene]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--from", type=int, dest="first", metavar="STEP", help="the window's begin; default 2/5 of its end")
    parser.add_argument("--to", type=int, dest="last", metavar="STEP", help="its end; default 5000, in a sweep 600")
    parser.add_argument("--steps", type=int, dest="last", metavar="N", help="the same as --to")
    parser.add_argument("--profile", action="store_true", help="then profile 32 steps: time and calls of each kernel")
    parser.add_argument("--sweep", choices=SWEEPS, help="repeat with a growing number of these")
    parser.add_argument("--values", type=int, nargs="+", help="of the sweep; log2 of the rows for a table")


def run(options: argparse.Namespace, rest: Sequence[str]) -> Report:
    """The report."""
    rest = [*rest, "--trainer.enable_checkpointing=false"]
    if options.sweep is None:
        return run_once(options, rest, default=5000)
    rows: list[Report] = []
    splits: Splits = {}
    report: Report = {}
    for value in options.values or SWEEPS[options.sweep]:
        change = _repeat_images(value) if options.sweep == "images" else None
        report = run_once(options, [*rest, *_overrides(options.sweep, value)], 600, change, splits)
        rows.append({options.sweep: value, **report["step"]})
        print(f"{options.sweep} {value}: {report['step']['ms_per_step']:.4g} ms per step", file=sys.stderr)
    return {"environment": report["environment"], "scene": report["scene"], f"sweep of {options.sweep}": rows}


def run_once(
    options: argparse.Namespace,
    arguments: Sequence[str],
    default: int,
    change: Callable[[Scene], Scene] | None = None,
    splits: Splits | None = None,
) -> Report:
    """One fit: what the window saw."""
    window = StepWindow(options.profile)
    cli = build(arguments, [window])
    trainer, datamodule = cli.trainer, cli.datamodule
    window.place(options.first, options.last, trainer.max_steps, default)
    share_splits(datamodule, {} if splits is None else splits, change)
    datamodule.prepare_data()
    datamodule.setup("fit")
    _forget(cli)
    window.entered = time.perf_counter()
    trainer.fit(cli.model, datamodule=datamodule)
    if not window.report:
        sys.exit(f"lightning-nerf bench step: the run ended before step {window.last}")
    return {
        "environment": environment(window.device),
        "scene": datamodule.scene_name,
        **window.report,
    }


class StepWindow(L.Callback):
    """Times the steps from one to another, then ends the run."""

    def __init__(self, profile: bool) -> None:
        self.first = self.last = 0
        self.profiled = PROFILED_STEPS if profile else 0
        self.entered = self.begun = 0.0
        self.done = 0
        self.read: list[tuple[Tensor, Tensor]] = []
        self.report: Report = {}
        self.device = torch.device("cpu")
        self._profiler: Any = None

    def place(self, first: int | None, last: int | None, max_steps: int, default: int) -> None:
        """Lay the window into a run of ``max_steps``."""
        room = max_steps - self.profiled if max_steps > 0 else default
        self.last = min(default, room) if last is None else last
        self.first = self.last * 2 // 5 if first is None else first
        if not 1 <= self.first < self.last <= room:
            sys.exit(
                f"lightning-nerf bench step: expected 1 <= from < to <= {room} (--trainer.max_steps, less those profiled), "
                f"got {self.first} and {self.last}"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Count the step; wait for the device where the window opens and closes."""
        self.done += 1
        if self.done == 1:
            self.device = pl_module.device
            wait(self.device)
            self.report = {}
            self.first_step_seconds = time.perf_counter() - self.entered
        if self.done == self.first:
            wait(self.device)
            self.begun = time.perf_counter()
        elif (self.first < self.done <= self.last and self.done % READ_EVERY == 0) or self.done == self.last:
            counts = step_outputs(outputs)
            self.read.append((counts["n_rays"].clone(), counts["n_samples"].clone()))
        if self.done == self.last:
            wait(self.device)
            self._close(time.perf_counter() - self.begun)
            if self.profiled:
                self._profiler = profiler(self.device)
                self._profiler.start()
        if self.done == self.last + self.profiled:
            if self._profiler is not None:
                wait(self.device)
                self._profiler.stop()
                kernels = kernel_table(self._profiler, self.profiled, self.device)
                total = sum(k["us_per_step"] for k in kernels)
                step = self.report["step"]
                step["kernel_ms_per_step"] = total / 1000
                step["lightning_share"] = 1 - total / 1000 / step["ms_per_step"]
                self.report["kernels"] = kernels
            if trainer.world_size > 1:
                self.report["processes"] = compare(trainer, pl_module)
            self.report["field"] = field_times(trainer, cast(NeRFModule, pl_module))
            trainer.should_stop = True

    def _close(self, seconds: float) -> None:
        steps = self.last - self.first
        rays, samples = (torch.stack(column).double().mean().item() for column in zip(*self.read, strict=True))
        self.report["step"] = {
            "from": self.first,
            "to": self.last,
            "ms_per_step": 1000 * seconds / steps,
            "n_rays": rays,
            "n_samples": samples,
            "rays_per_second": total(rays * steps / seconds, self.device),
            "samples_per_second": total(samples * steps / seconds, self.device),
            "peak_memory_gib": peak_memory_gib(self.device),
            "reserved_memory_gib": reserved_memory_gib(self.device),
            "first_step_seconds": self.first_step_seconds,
        }


def field_times(trainer: L.Trainer, pl_module: NeRFModule) -> list[Report]:
    """Forward and backward of the field alone, at the samples of a training batch and at as many random points."""
    batch = pl_module.draw()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        samples = pl_module.estimator.place(batch.rays, pl_module.field.query, key=pl_module.key).samples
        positions, directions, times = sample_points(batch.rays, samples)
        wanted = {} if times is None or "times" not in pl_module.field.wants else {"times": times}
    n = min(len(positions), pl_module.samples_per_step)
    low, high = pl_module.datamodule.scene_box.aabb.to(positions)
    places = {"a batch's samples": positions[:n], "random": low + (high - low) * torch.rand_like(positions[:n])}
    wanted = {name: value[:n] for name, value in wanted.items()}
    parameters = [p for p in pl_module.field.parameters() if p.requires_grad]
    device, rows = pl_module.device.type, []
    for name, points in places.items():

        def both(points: Tensor = points) -> object:
            with trainer.precision_plugin.forward_context(), torch.enable_grad():
                output = pl_module.field(points, directions[:n], **wanted)
            outputs = [output.density, output.rgb]
            return torch.autograd.grad(outputs, parameters, [torch.ones_like(o) for o in outputs], allow_unused=True)

        ms = 1000 * median_seconds(both, device, 20 if device == "cuda" else 3)
        rows.append({"field forward + backward": name, "points": n, "ms": ms})
    return rows


def share_splits(datamodule: NeRFDataModule, splits: Splits, change: Callable[[Scene], Scene] | None = None) -> None:
    """Let ``datamodule`` read a split only if ``splits`` lacks it; ``change`` is applied to the train split."""
    read = datamodule.source.read

    def shared(split: str) -> Scene:
        if split not in splits:
            splits[split] = read(split)
        return splits[split] if change is None or split != "train" else change(splits[split])

    datamodule.source.read = shared  # type: ignore[method-assign]


def _overrides(sweep: str, value: int) -> list[str]:
    if sweep == "samples":
        rays = max(256, value // 4)  # as many for each sample as in the recipes
        return [
            f"--model.init_args.samples_per_step={value}",
            f"--model.init_args.max_rays={rays}",
            f"--model.init_args.initial_rays={min(1024, rays)}",
        ]
    return [f"--model.init_args.field.init_args.log2_table_size={value}"] if sweep == "table" else []


def _repeat_images(count: int) -> Callable[[Scene], Scene]:
    def repeat(scene: Scene) -> Scene:
        index = [i % scene.n_views for i in range(count)]
        images = Images.from_pictures([scene.picture(i) for i in index])  # masks are left out
        return scene._replace(cameras=scene.cameras.chosen(index), images=images, names=[str(i) for i in range(count)])

    return repeat


def _forget(cli: NeRFCLI) -> None:
    """Give back what a former run of this process allocated."""
    gc.collect()
    if torch.cuda.is_available() and cli.trainer.strategy.root_device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
