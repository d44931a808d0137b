"""The peer's functions for the same work, where it is installed. Never a dependency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.types import PackedSamples, Rays

Peer = Callable[[], object]


def nerfacc() -> Any | None:
    """NerfAcc, or None. It has CUDA kernels only, which it may compile when they are first called."""
    try:
        import nerfacc as peer  # type: ignore[import-not-found]
    except Exception:  # whatever an extension may raise on a torch it was not built for
        return None
    return peer if torch.cuda.is_available() else None


def march(rays: Rays, occupancy: Tensor, aabb: Tensor, step: float) -> Peer | None:
    """``OccGridEstimator.sampling`` without a density function, on the same grid."""
    peer = nerfacc()
    if peer is None or not occupancy.is_cuda:
        return None
    grid = peer.OccGridEstimator(aabb.flatten().cpu(), resolution=occupancy.shape[1], levels=occupancy.shape[0])
    grid = grid.to(occupancy.device)
    grid.binaries = occupancy
    far = float(rays.far.max())
    return lambda: grid.sampling(rays.origins, rays.directions, near_plane=0.0, far_plane=far, render_step_size=step)


def update(aabb: Tensor, resolution: int, density: Tensor, step: int) -> Peer | None:
    """``OccGridEstimator._update`` of one level, of a field that costs nothing; its step says which cells."""
    peer = nerfacc()
    if peer is None or not density.is_cuda:
        return None
    grid = peer.OccGridEstimator(aabb.flatten().cpu(), resolution=resolution).to(density.device)
    return lambda: grid._update(step, lambda points: density[: len(points), None])


def visibility(densities: Tensor, samples: PackedSamples, early_stop_eps: float) -> Peer | None:
    """``render_visibility_from_density`` and the selection of what it leaves."""
    peer = nerfacc()
    if peer is None or not densities.is_cuda:
        return None
    t_starts, t_ends, rays = samples.t_starts, samples.t_ends, samples.ray_indices.long()
    sizes = samples.offsets.diff()
    packed = torch.stack([samples.offsets[:-1], sizes], -1).long()

    def run() -> object:
        mask = peer.render_visibility_from_density(
            t_starts, t_ends, densities, packed_info=packed, early_stop_eps=early_stop_eps
        )
        return rays[mask], t_starts[mask], t_ends[mask]

    return run


def composite(samples: PackedSamples, densities: Tensor, channels: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Colors by ``rendering``, a function of densities and colors; it takes no background here."""
    peer = nerfacc()
    if peer is None or not densities.is_cuda:
        return None
    t_starts, t_ends, rays = samples.t_starts, samples.t_ends, samples.ray_indices.long()
    n_rays = len(samples.offsets) - 1

    def colors(d: Tensor, c: Tensor) -> Tensor:
        return peer.rendering(t_starts, t_ends, rays, n_rays=n_rays, rgb_sigma_fn=lambda *_: (c, d))[0]

    return colors
