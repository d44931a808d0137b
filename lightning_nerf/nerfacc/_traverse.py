"""Samples along rays, in the occupied cells of any boxes: by the march where it can, in plain torch where it cannot.

The march knows nested boxes, each twice as large as the one before, and a lattice of steps. Other boxes, and one interval
per cell in place of steps, are rare enough for torch: their time is that of the lattice points, or of the planes between
cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.nerfacc._nested import with_nesting
from lightning_nerf.ops.march import candidates, find_samples, lattice_of, march
from lightning_nerf.ops.memory import check_fits
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.types import PackedSamples, Rays

_MAX_LEVELS = 8  # of the march
_MAX_RESOLUTION = 2**18
_LARGEST = torch.finfo(torch.float32).max
_BYTES = 40  # of a sample, while lists are joined
_CROSSINGS = 2**21  # of rays and planes that are sorted at once


def sample(
    rays: Rays,
    binaries: Tensor,
    aabbs: Tensor,
    step_size: float,
    cone_angle: float,
    jitter: Tensor | None = None,
    limit: int | None = None,
) -> PackedSamples:
    """All samples, or each ray's first ``limit``; see :func:`lightning_nerf.nerfacc.grid.traverse_grids`."""
    if math.isnan(step_size):
        raise BadArgument(f"step_size: expected a number, got {step_size}")
    aabbs = aabbs.contiguous()

    def by_torch() -> PackedSamples:
        return _sample_by_torch(rays, binaries.contiguous(), aabbs, step_size, cone_angle, jitter, limit)

    def find(nested: bool) -> PackedSamples:
        if not nested:
            return by_torch()
        box = aabbs[0].view(2, 3)
        return march(rays, binaries, box, step_size=step_size, cone_angle=cone_angle, jitter=jitter, limit=limit)

    is_marched = step_size > 0 and len(aabbs) <= _MAX_LEVELS and max(binaries.shape[1:]) <= _MAX_RESOLUTION
    return with_nesting(aabbs, find) if is_marched else by_torch()


def _sample_by_torch(
    rays: Rays,
    binaries: Tensor,
    aabbs: Tensor,
    step_size: float,
    cone_angle: float,
    jitter: Tensor | None,
    limit: int | None,
) -> PackedSamples:
    if step_size > 0:
        t_starts, t_ends, ray = _lattice_samples(rays, binaries, aabbs, step_size, cone_angle, jitter)
    else:
        t_starts, t_ends, ray = _cell_intervals(rays, binaries, aabbs)
    n_rays = rays.origins.shape[0]
    if limit is not None:
        rank = torch.arange(len(ray), device=ray.device) - torch.searchsorted(ray, ray)
        first = rank < limit
        t_starts, t_ends, ray = t_starts[first], t_ends[first], ray[first]
    if len(ray) >= 2**31:
        raise BadArgument(f"expected fewer than 2**31 samples, got {len(ray)}; take a larger step_size, or fewer rays")
    offsets = torch.cat([ray.new_zeros(1), torch.bincount(ray, minlength=n_rays).cumsum(0)]).int()
    kept = torch.ones(n_rays, dtype=torch.bool, device=ray.device)
    return PackedSamples(t_starts, t_ends, ray.int(), offsets, kept)


def termination_planes(
    rays: Rays, aabbs: Tensor, samples: PackedSamples, step_size: float, cone_angle: float, limit: int | None
) -> Tensor:
    """Where to go on [R]: the end of a ray's last sample, where it has ``limit`` of them, else behind the last box."""
    _, t_maxs, hits = ray_aabb(rays.origins, rays.directions, aabbs.view(-1, 2, 3))
    leave = torch.minimum(torch.where(hits, t_maxs, -math.inf).amax(-1), rays.far).double()
    if step_size > 0:
        lattice = lattice_of(rays.near, None, step_size, cone_angle)
        planes = lattice.at(lattice.guess(leave)).clamp(max=_LARGEST).float()
    else:
        planes = leave.float()
    planes = torch.where(leave > rays.near, planes, rays.near)
    if limit is None or len(samples.t_ends) == 0:
        return planes
    ends = samples.t_ends[samples.offsets[1:].long().sub(1).clamp(min=0)]
    return torch.where(samples.offsets.diff() == limit, ends, planes)


def _cell_of(points: Tensor, aabbs: Tensor, resolution: tuple[int, ...]) -> Tensor:
    """Index, over all boxes, of the cell that holds the point: in the first box that does, or -1. [n, 3] -> [n]."""
    low, high = aabbs[:, :3], aabbs[:, 3:]
    inside = ((low <= points[:, None]) & (points[:, None] <= high)).all(-1)
    level = inside.to(torch.uint8).argmax(-1)
    size = torch.tensor(resolution, device=points.device)
    fraction = (points - low[level]) / (high - low)[level]
    x, y, z = torch.minimum((torch.where(inside.any(-1, keepdim=True), fraction, 0.0) * size).long(), size - 1).unbind(-1)
    return torch.where(inside.any(-1), ((level * resolution[0] + x) * resolution[1] + y) * resolution[2] + z, -1)


def _lattice_samples(
    rays: Rays, binaries: Tensor, aabbs: Tensor, step_size: float, cone_angle: float, jitter: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The samples that the march defines, for boxes in any place."""

    def occupied(points: Tensor) -> Tensor:
        cell = _cell_of(points, aabbs, binaries.shape[1:])
        return (cell >= 0) & binaries.view(-1)[cell.clamp(min=0)]

    lattice = lattice_of(rays.near, jitter, step_size, cone_angle)
    bounds = torch.stack([aabbs[:, :3].amin(0), aabbs[:, 3:].amax(0)]).double()
    stays_outside = (rays.directions == 0).all(-1) & ~occupied(rays.origins)
    lines = (rays.origins, rays.directions, rays.near, rays.far.masked_fill(stays_outside, -math.inf), lattice, bounds)
    first, last = candidates(*lines)
    n_steps = float((last - first).sum())
    if n_steps >= 2**31:
        raise BadArgument(
            f"expected fewer than 2**31 steps within the boxes, which are not nested by doubling, got {n_steps:.3g}; "
            "take a larger step_size, fewer rays, or nearer far planes"
        )
    found, count = [], 0
    for part in find_samples(*lines, occupied):
        found.append(part)
        count += len(part[0])  # ahead lie one list of all of them, and their edges
        check_fits("step_size", count, _BYTES, rays.near.device, "a larger one, fewer rays, or nearer far planes")
    if not found:
        nothing = rays.origins.new_empty(0)
        return nothing, nothing, nothing.long()
    ray, k = torch.cat([ray for ray, _ in found]), torch.cat([k for _, k in found])
    edges = [lattice.of(ray).at(index).clamp(max=_LARGEST).float() for index in (k, k + 1)]
    return edges[0], edges[1], ray


def _cell_intervals(rays: Rays, binaries: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval within each occupied cell that a ray crosses, unless it is shorter than floats can tell."""
    resolution, boxes = tuple(binaries.shape[1:]), aabbs.double()
    planes = [  # [M * (cells + 1)] for each axis
        torch.lerp(
            boxes[:, a, None],
            boxes[:, a + 3, None],
            torch.linspace(0, 1, cells + 1, dtype=torch.float64, device=boxes.device),
        ).flatten()
        for a, cells in enumerate(resolution)
    ]
    finite = rays.origins.isfinite().all(-1) & rays.directions.isfinite().all(-1) & rays.near.isfinite()
    far = torch.where(finite, rays.far, -math.inf).double().clamp(max=_LARGEST)  # also NaN: see the maximum below
    found = []
    rows = max(1, _CROSSINGS // (2 + sum(len(p) for p in planes)))
    for begin in range(0, len(rays.near), rows):
        part = slice(begin, begin + rows)
        o, d = rays.origins[part].double(), rays.directions[part].double()
        near = rays.near[part].double()[:, None]
        end = torch.where(far[part, None] > near, far[part, None], near)
        t = torch.cat([near, end, *((p - o[:, a, None]) / d[:, a, None] for a, p in enumerate(planes))], -1)
        t = torch.where(t.isnan(), near, t).clamp(near, end).sort(-1).values
        middle = 0.5 * t[:, :-1] + 0.5 * t[:, 1:]
        points = o[:, None] + middle[..., None] * d[:, None]
        cell = _cell_of(points.view(-1, 3), boxes, resolution).view(middle.shape)
        occupied = (cell >= 0) & binaries.view(-1)[cell.clamp(min=0)] & (t[:, :-1] < t[:, 1:])
        row, i = occupied.nonzero(as_tuple=True)
        start, stop, cell = t[row, i], t[row, i + 1], cell[row, i]
        # Planes of a box behind cut cells of the one before it in two.
        follows = (row[1:] == row[:-1]) & (cell[1:] == cell[:-1]) & (start[1:] == stop[:-1])
        edge = torch.ones(1, dtype=torch.bool, device=row.device)[: len(row)]
        first, last = torch.cat([edge, ~follows]), torch.cat([~follows, edge])
        found.append((start[first].float(), stop[last].float(), row[first] + begin))
    if not found:
        nothing = rays.origins.new_empty(0)
        return nothing, nothing, nothing.long()
    t_starts, t_ends, ray = (torch.cat(parts) for parts in zip(*found, strict=True))
    seen = t_starts < t_ends
    return t_starts[seen], t_ends[seen], ray[seen]
