"""Train a recipe and report what a results file leaves out: every k-th view's PSNR and how many samples the march skips.

python -m tests.benchmarks.scene fit -c blender/instant_ngp --data.root path/to/lego
"""

from __future__ import annotations

import json
import statistics

import torch

from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.cli import main as run
from lightning_nerf.data.views import image_rays
from lightning_nerf.modules import NeRFModule
from lightning_nerf.ops.march import march
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.visibility import prune
from lightning_nerf.types import Rays


@torch.no_grad()
def skipped(module: NeRFModule, index: int = 0) -> dict[str, float]:
    """Share of a uniform march's samples, over one whole test view, that the grid and then visibility skip."""
    grid = module.estimator
    rays = image_rays(module.datamodule.views("test"), index, module.datamodule.near, module.datamodule.far)
    counts = {"uniform": 0, "grid": 0, "visible": 0}
    for start in range(0, len(rays.origins), 2**16):
        part = Rays(*(None if t is None else t[start : start + 2**16].to(module.device) for t in rays))
        options = {"step_size": grid.render_step_size, "cone_angle": grid.cone_angle}
        counts["uniform"] += len(march(part, torch.ones_like(grid.binaries), grid.aabb, **options).t_starts)
        samples = march(part, grid.binaries, grid.aabb, **options)
        counts["grid"] += len(samples.t_starts)
        densities = module.field.density(sample_points(part, samples)[0])
        visible = prune(densities, samples, early_stop_eps=grid.early_stop_eps, alpha_thre=grid.alpha_threshold)
        counts["visible"] += len(visible.t_starts)
    return {
        **counts,
        "skipped_by_grid": 1 - counts["grid"] / counts["uniform"],
        "skipped_in_all": 1 - counts["visible"] / counts["uniform"],
    }


def main() -> None:
    """Run the command line, then print one JSON line."""
    cli = run()
    results = json.loads((run_folder(cli.trainer) / "results.json").read_text())
    values = list(results.pop("psnr_per_image").values())
    module = cli.model.to("cuda" if torch.cuda.is_available() else "cpu")
    results["psnr_every_8th"] = statistics.mean(values[::8])
    results["march"] = skipped(module)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
