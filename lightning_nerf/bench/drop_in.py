"""``bench ops`` of the interface for plain PyTorch loops, host and all, beside NerfAcc's functions of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_nerf import nerfacc
from lightning_nerf.bench import peers
from lightning_nerf.bench.cases import Case, Setting, both
from lightning_nerf.bench.timing import Work
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.ops.ray_offsets import ray_offsets
from lightning_nerf.renderers.rendering import rendering


def rendered(s: Setting) -> Iterator[Case]:
    """int64 ray indices in; colors, opacities, depths, weights, transmittance and alphas out; the loss is on colors."""
    t_starts, t_ends, ray_indices = s.samples.t_starts, s.samples.t_ends, s.samples.ray_indices.long()
    n_rays = len(s.rays.origins)
    peer = peers.composite(s.samples, s.densities, s.channels)

    def colors(densities: Tensor, channels: Tensor) -> Tensor:
        return rendering(t_starts, t_ends, ray_indices, n_rays, lambda *_: (channels, densities))[0]

    yield Case("ray_offsets", lambda: ray_offsets(ray_indices, n_rays), s.n, Work((32 + 4) * n_rays))
    per_ray = (32 + 4 + 28) * n_rays  # where a ray begins: a sector of the indices, at least
    yield Case(
        "rendering forward",
        lambda: colors(s.densities, s.channels),
        s.n,
        Work((24 + 12) * s.n + per_ray),
        peer=None if peer is None else lambda: peer(s.densities, s.channels),
    )
    inputs = [s.densities, s.channels]
    yield Case(
        "rendering forward + backward",
        both(colors, inputs),
        s.n,
        Work((24 + 12 + 24 + 16) * s.n + per_ray + 28 * n_rays),
        peer=None if peer is None else both(peer, inputs),
    )


def sampling(s: Setting) -> Iterator[Case]:
    """Without a function, and with one of constant density that makes rays opaque (exp(-9.2)) half-way."""
    n, n_rays = s.n, len(s.rays.origins)
    per_ray = n / max(1, s.samples.offsets.diff().count_nonzero().item())  # of those that have any
    density = torch.full((n,), 9.2 / (0.5 * per_ray * s.step), device=s.device)
    functions: list[tuple[str, Any, float]] = [("", None, 20.0), (", sigma_fn", lambda *_: density, 20.0 + 12.0 + 16.0)]
    for name, sigma_fn, size in functions:

        def run(module: ModuleType, sigma_fn: Any = sigma_fn) -> Callable[[], object]:
            grid = _estimator(module, s, s.occupancy.shape[1])
            grid.binaries.copy_(s.occupancy)
            return lambda: grid.sampling(
                s.rays.origins, s.rays.directions, sigma_fn, far_plane=10.0, render_step_size=s.step
            )

        work = Work(size * n + 40 * n_rays)
        yield Case(f"nerfacc sampling{name}", run(nerfacc), n, work, peer=_peer(s, run))
        grid = OccupancyGrid(resolution=s.occupancy.shape[1], step_size=s.step, alpha_threshold=0.0).bind(s.aabb.cpu())
        grid.to(s.device).binaries.copy_(s.occupancy)
        own = lambda g=grid, f=sigma_fn: g.sampling(s.rays.origins, s.rays.directions, f, far_plane=10.0)  # noqa: E731
        yield Case(f"OccupancyGrid.sampling{name}", own, n, work, peer=_peer(s, run))


def updating(s: Setting) -> Iterator[Case]:
    """Of 128^3 cells (on a CPU: 64^3) with an evaluation that costs next to nothing."""
    resolution = 128 if s.device == "cuda" else 64
    cells = resolution**3

    def occupancy(points: Tensor) -> Tensor:
        return points[:, 0]

    for name, step, evaluated in (("half of the cells", 256, cells // 2), ("all cells", 0, cells)):

        def run(module: ModuleType, step: int = step) -> Callable[[], object]:
            grid = _estimator(module, s, resolution)
            return lambda: grid._update(step, occupancy)

        work = Work(13 * cells + 20 * evaluated)  # state and newest value; cell, point and occupancy
        yield Case(f"nerfacc occupancy update, {name}", run(nerfacc), evaluated, work, peer=_peer(s, run))


def _estimator(module: ModuleType, s: Setting, resolution: int) -> Any:
    return module.OccGridEstimator(s.aabb.flatten().cpu(), resolution=resolution).to(s.device)


def _peer(s: Setting, run: Callable[[ModuleType], Callable[[], object]]) -> Callable[[], object] | None:
    peer = peers.nerfacc()
    return None if peer is None or s.device != "cuda" else run(peer)
