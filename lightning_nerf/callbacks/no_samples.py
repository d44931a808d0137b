"""Says why no ray of a batch has samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_nerf.callbacks.trained import TrainedModule
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.types import Rays


@torch.no_grad()
def why_no_samples(module: TrainedModule, rays: Rays | None = None) -> str:
    """The first cause that explains it, with a remedy: box, near and far, step, grid or capacity. Waits for the device.

    Args:
        module: within a fit.
        rays: of a batch without samples; None: the rays that the module draws.
    """
    rays = module.draw().rays if rays is None else rays
    box = module.datamodule.scene_box.aabb.to(rays.origins)
    active = rays.far > rays.near
    if not bool(active.any()):
        return "no ray of the batch is active (far > near, and n_rays > 0)"
    rays = rays.map(lambda t: t[active])
    starts, ends, meets = (t[:, 0] for t in ray_aabb(rays.origins, rays.directions, box[None]))
    meets &= ends > 0  # not behind the camera
    if not bool(meets.any()):
        return (
            f"no ray meets the scene's box, {_corners(box)}; give the data module the aabb of what the cameras look at "
            "(--data.aabb), in the units of their positions"
        )
    near, far = rays.near[meets], rays.far[meets]
    first, last = starts[meets].clamp(min=0), ends[meets]
    ways = torch.minimum(last, far) - torch.maximum(first, near)
    if not bool((ways > 0).any()):
        return (
            f"rays meet the scene's box from t = {float(first.min()):.4g} to {float(last.max()):.4g}, and none between "
            f"near = {float(near.min()):.4g} and far = {float(far.max()):.4g}; give the data module near <= "
            f"{float(first.min()):.4g} and far >= {float(last.max()):.4g} (--data.near, --data.far)"
        )
    longest = float((ways * rays.directions[meets].norm(dim=-1)).max())
    step = getattr(module.estimator, "render_step_size", None)
    if isinstance(step, float) and step > longest:
        diagonal = float((box[1] - box[0]).norm())
        return (
            f"step_size = {step:.4g} is longer than any ray's way through the scene's box between near and far, "
            f"{longest:.4g}; give the estimator step_size = {diagonal / 1024:.2g} or so (--model.estimator.step_size)"
        )
    share = module.estimator.occupied_share()
    if share is not None and float(share) == 0:
        return "all cells of the occupancy grid are empty; the field's density is too low to open one, or they were closed"
    return (
        f"samples_per_step = {module.samples_per_step} is less than the samples of one ray, or all cells on the rays' way "
        "are empty; give the module more samples_per_step, or the estimator a longer step_size"
    )


def _corners(box: torch.Tensor) -> str:
    def corner(values: Sequence[float]) -> str:
        return f"({', '.join(f'{value:.4g}' for value in values)})"

    low, high = box.tolist()
    return f"{corner(low)} to {corner(high)}"
