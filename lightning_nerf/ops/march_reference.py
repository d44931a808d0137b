"""The march in plain torch: each lattice sample is looked up by itself, with the float operations of csrc/march.cuh.

Candidates, those near the outermost box, are numbered through all rays and taken some at a time, so that memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.ops.pack import reference as pack_reference

_CHUNK = 2**18
_LARGEST = torch.finfo(torch.float32).max


class Lattice(NamedTuple):
    """Where samples begin, per ray (float64 [R]) or per candidate; see :func:`march`."""

    start: Tensor
    bend: Tensor
    bend_t: Tensor
    step: float
    growth: float

    def of(self, ray: Tensor) -> Lattice:
        """The lattices of the given rays."""
        return self._replace(start=self.start[ray], bend=self.bend[ray], bend_t=self.bend_t[ray])

    def at(self, k: Tensor) -> Tensor:
        """Where sample k begins and sample k - 1 ends."""
        linear = self.start + k * self.step
        return linear if self.growth == 0 else torch.where(k <= self.bend, linear, self._grown(k))

    def middle(self, k: Tensor) -> Tensor:
        """The midpoint of sample k."""
        linear = self.start + (k + 0.5) * self.step
        return linear if self.growth == 0 else torch.where(k < self.bend, linear, self._grown(k) * (1 + 0.5 * self.growth))

    def guess(self, t: Tensor) -> Tensor:
        """The first k with ``middle(k) >= t``, up to rounding."""
        linear = ((t - self.start) / self.step - 0.5).ceil().clamp(min=0)
        if self.growth == 0:
            return linear
        grown = (torch.log(t / (self.bend_t * (1 + 0.5 * self.growth))) / math.log1p(self.growth)).ceil().clamp(min=0)
        return torch.where(t > self.bend_t, self.bend + grown, linear)

    def _grown(self, k: Tensor) -> Tensor:
        return self.bend_t * torch.exp((k - self.bend) * math.log1p(self.growth))


def lattice_of(near: Tensor, jitter: Tensor | None, step_size: float, cone_angle: float) -> Lattice:
    start = near.double() + (torch.zeros_like(near) if jitter is None else jitter).double() * step_size
    if cone_angle == 0:
        bend = torch.full_like(start, math.inf)
        return Lattice(start, bend, bend, step_size, cone_angle)
    bend = ((step_size / cone_angle - start) / step_size).ceil().clamp(min=0)
    bend_t = (start + bend * step_size).clamp(min=step_size / cone_angle)  # rounding must not make it 0 or less
    return Lattice(start, bend, bend_t, step_size, cone_angle)


def occupied_at(points: Tensor, occupancy: Tensor, aabb: Tensor, bins: Tensor | None = None) -> Tensor:
    """Is the cell occupied that holds the point, in the finest level that contains it? [..., 3] -> [...] bool.

    With the points' bins [...], ``occupancy`` has a grid for each bin.
    """
    levels, *shape = occupancy.shape[-4:]
    low, high = aabb.unbind(0)
    resolution = torch.tensor(shape, device=points.device)
    sizes = torch.tensor([2.0**level for level in range(levels)], dtype=points.dtype, device=points.device)
    u = (points - (0.5 * low + 0.5 * high)) * (1.0 / (0.5 * high - 0.5 * low))  # level l: -2^l <= u <= 2^l
    level = (~(u.abs().amax(-1, keepdim=True) <= sizes)).sum(-1)
    inside, level = level < levels, level.clamp(max=levels - 1)
    v = torch.where(inside[..., None], u / sizes[level][..., None], 0.0)
    cell = torch.minimum(((v + 1) * 0.5 * resolution.to(v)).long(), resolution - 1)
    index = (level, *cell.unbind(-1))
    return inside & occupancy[index if bins is None else (bins.long().clamp(0, len(occupancy) - 1), *index)]


def candidates(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, lattice: Lattice, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """A range [R], [R] of k that holds all samples inside of the bounds, found by a slab test in float64."""
    finite = origins.isfinite().all(-1) & directions.isfinite().all(-1) & near.isfinite() & lattice.start.isfinite()
    o, d, (low, high) = origins.double(), directions.double(), bounds.unbind(0)
    center, half = 0.5 * (low + high), 0.5 * (high - low)
    half = half * (1 + 2**-18) + (center.abs() + o.abs()) * 2**-18  # 64 roundings of a position
    sides = torch.stack([(center - half - o) / d, (center + half - o) / d])
    inside = (o - center).abs() <= half
    enter = torch.where(d == 0, torch.where(inside, -math.inf, math.inf), sides.amin(0)).amax(-1)
    leave = torch.where(d == 0, math.inf, sides.amax(0)).amin(-1)
    enter, leave = torch.maximum(enter, near.double()), torch.minimum(leave, far.double().clamp(max=_LARGEST))
    active = finite & (near < far) & (enter <= leave) & ((low < high).all())
    first, last = (lattice.guess(enter) - 2).clamp(min=0), lattice.guess(leave) + 2
    return torch.where(active, first, 0.0), torch.where(active, last, 0.0)


def find_samples(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    lattice: Lattice,
    bounds: Tensor,
    occupied: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ray and k of all samples with ``occupied(midpoints [n, 3]) [n]``, in order, some at a time.

    Outside of ``bounds`` [2, 3] float64 nothing may be occupied.
    """
    return _find_samples(origins, directions, near, far, lattice, bounds, lambda points, ray: occupied(points))


def _find_samples(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    lattice: Lattice,
    bounds: Tensor,
    occupied: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """:func:`find_samples` where ``occupied`` is told the rays [n] of the midpoints, too."""
    first, last = candidates(origins, directions, near, far, lattice, bounds)
    ends = (last - first).clamp(max=2**32).long().cumsum(0)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
        i = torch.arange(begin, min(begin + _CHUNK, int(ends[-1])), device=origins.device)
        ray = torch.searchsorted(ends, i, right=True)
        k = last[ray] - (ends[ray] - i)
        middle = lattice.of(ray).middle(k)
        points = origins[ray] + middle.float()[:, None] * directions[ray]
        limit = far.double().clamp(max=_LARGEST)[ray]
        hit = (middle >= near[ray]) & (middle < limit) & occupied(points, ray)
        yield ray[hit], k[hit]


def _hits(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    aabb: Tensor,
    lattice: Lattice,
    bins: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = aabb.double().unbind(0)
    center, half = 0.5 * (low + high), 0.5 * (high - low) * 2 ** (occupancy.shape[-4] - 1)
    bounds = torch.stack([center - half, center + half])

    def occupied(points: Tensor, ray: Tensor) -> Tensor:
        return occupied_at(points, occupancy, aabb, None if bins is None else bins[ray])

    return _find_samples(origins, directions, near, far, lattice, bounds, occupied)


def count_reference(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    occupancy: Tensor,
    aabb: Tensor,
    step_size: float,
    cone_angle: float,
    bins: Tensor | None,
) -> tuple[Tensor, Tensor]:
    lattice = lattice_of(near, jitter, step_size, cone_angle)
    counts = torch.zeros(origins.shape[0], dtype=torch.int64, device=origins.device)
    for ray, _ in _hits(origins, directions, near, far, occupancy, aabb, lattice, bins):
        counts += torch.bincount(ray, minlength=len(counts))
    return counts.clamp(max=2**31 - 1).int(), origins.new_empty(0, dtype=torch.int32)


def write_reference(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    occupancy: Tensor,
    aabb: Tensor,
    step_size: float,
    cone_angle: float,
    bins: Tensor | None,
    counts: Tensor,
    plan: Tensor,
    offsets: Tensor,
    n: int,
) -> tuple[Tensor, Tensor, Tensor]:
    lattice = lattice_of(near, jitter, step_size, cone_angle)
    far = torch.where(offsets[1:] > offsets[:-1], far, -math.inf)  # nothing of rays that are not kept
    t_starts, t_ends = origins.new_zeros(n), origins.new_zeros(n)
    ray_indices = torch.zeros(n, dtype=torch.int32, device=origins.device)
    seen = torch.zeros(origins.shape[0], dtype=torch.int64, device=origins.device)
    for ray, k in _hits(origins, directions, near, far, occupancy, aabb, lattice, bins):
        rank = seen[ray] + torch.arange(len(ray), device=ray.device) - torch.searchsorted(ray, ray)
        seen += torch.bincount(ray, minlength=len(seen))
        i = offsets[ray] + rank
        fits = i < offsets[ray + 1].clamp(max=n)  # a ray's first samples, where there is not room for all
        ray, k, i = ray[fits], k[fits], i[fits]
        t_starts[i] = lattice.of(ray).at(k).clamp(max=_LARGEST).float()
        t_ends[i] = lattice.of(ray).at(k + 1).clamp(max=_LARGEST).float()
        ray_indices[i] = ray.int()
    return t_starts, t_ends, ray_indices


def march_pack_reference(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    occupancy: Tensor,
    aabb: Tensor,
    step_size: float,
    cone_angle: float,
    bins: Tensor | None,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, bins)
    counted = count_reference(*arguments)
    offsets, kept = pack_reference(counted[0], capacity)
    return (*write_reference(*arguments, *counted, offsets, capacity), offsets, kept)
