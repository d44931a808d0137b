"""Samples along rays, in the occupied cells of nested grids only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import _library
from lightning_nerf.ops._exact import write_exactly
from lightning_nerf.ops._memory import check_capacity_fits, check_fits
from lightning_nerf.ops.pack import MAX_COUNT, check_capacity, pack
from lightning_nerf.ops.pack import reference as pack_reference
from lightning_nerf.types import PackedSamples, Rays

_MAX_LEVELS = 8
_MAX_RESOLUTION = 2**18
_LARGEST = torch.finfo(torch.float32).max
_SMALLEST_STEP = 2.0**-149  # the smallest float32
_BYTES = 40  # of the list 12; the rest is what the least user of it makes: a position, a direction, a density

_per_ray: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # occupancy -> samples a ray in its last exact march on CUDA


def march(
    rays: Rays,
    occupancy: Tensor,
    aabb: Tensor,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    capacity: int | None = None,
    limit: int | None = None,
) -> PackedSamples:
    """The samples of each ray whose midpoints are in occupied cells.

    A ray's lattice starts at t_0 = near + jitter * step_size and has intervals of dt(t) = max(step_size, cone_angle * t):
    t_k = t_0 + k * step_size up to k = c, the first with t_c >= step_size / cone_angle, then t_c (1 + cone_angle)^(k - c).
    Sample k, from t_k to t_{k+1}, is returned if its midpoint m_k is in [near, far) and origin + m_k * direction in an
    occupied cell of the finest level that contains it. Level l covers the box scaled by 2^l about its center; outside of
    the outermost level nothing is occupied. Lattice arithmetic is float64 (exact for k < 2^50), positions are float32. A
    ray's last interval may end beyond far.

    The kernels' time is that of the cells crossed, not of lattice points, and finite for all input: also where dt is below
    the float spacing of t (most samples have t_start = t_end then, and their lengths still add up), far is inf, or a
    direction 0. (The reference's time is that of the lattice points in the box.) A ray with NaN or inf in origin, direction
    or near has no samples.

    Args:
        rays: R rays.
        occupancy: [L, X, Y, Z] bool, 1 <= L <= 8, and 1 <= X, Y, Z <= 2^18.
        aabb: [2, 3] float32, corners of level 0. Without volume: no samples (ValueError for CPU tensors).
        step_size: least dt, > 0, in units of t.
        cone_angle: growth of dt with t, >= 0.
        jitter: [R] float32 in [0, 1), where in its first step a ray starts. None: 0.
        capacity: None: exactly as many samples as there are, one host synchronization. Else N, without synchronization:
            rays that don't fit (see :func:`~lightning_nerf.ops.pack.pack`) have ``kept`` False and no samples.
        limit: of each ray's samples, the first so many only, >= 0. None: all.

    Returns:
        Samples in the order of rays and t. Not differentiable.

    Raises:
        ValueError: a wrong argument; with ``capacity=None`` also where 2^31 - 1 samples do not hold all rays, or
            memory does not hold the samples.

    Source: the lattice and the cells are those of Müller et al., "Instant neural graphics primitives", SIGGRAPH 2022,
    appendix E, and of ``traverse_grids`` in Li et al., "NerfAcc", ICCV 2023.
    """
    ops = torch.ops.lightning_nerf
    kernels = (ops.march_count, ops.march_write, ops.march_pack)
    return _march(*kernels, rays, occupancy, aabb, step_size, cone_angle, jitter, capacity, limit)


def reference(
    rays: Rays,
    occupancy: Tensor,
    aabb: Tensor,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    capacity: int | None = None,
    limit: int | None = None,
) -> PackedSamples:
    """:func:`march` by the references of its ops."""
    references = (count_reference, write_reference, march_pack_reference)
    return _march(*references, rays, occupancy, aabb, step_size, cone_angle, jitter, capacity, limit)


def _march(
    count: Callable[..., tuple[Tensor, Tensor]],
    write: Callable[..., tuple[Tensor, Tensor, Tensor]],
    count_pack_write: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
    rays: Rays,
    occupancy: Tensor,
    aabb: Tensor,
    step_size: float,
    cone_angle: float,
    jitter: Tensor | None,
    capacity: int | None,
    limit: int | None,
) -> PackedSamples:
    _check(rays, occupancy, aabb, step_size, cone_angle, jitter)
    n = rays.origins.shape[0]
    arguments = (
        *(a.detach().contiguous() for a in (rays.origins, rays.directions, rays.near, rays.far)),
        None if jitter is None else jitter.detach().contiguous(),
        occupancy.contiguous(),
        aabb.detach().contiguous(),
        float(step_size),
        float(cone_angle),
    )
    if capacity is not None:
        check_capacity(capacity)
        check_capacity_fits(capacity, occupancy.device)
    if limit is None and capacity is not None:
        return PackedSamples(*count_pack_write(*arguments, capacity))
    if limit is not None and limit < 0:
        raise BadArgument(f"limit: expected None or >= 0, got {limit}")
    counts, plan = count(*arguments)
    offsets, kept = pack(counts if limit is None else counts.clamp(max=limit), capacity)
    if capacity is not None:
        return PackedSamples(*write(*arguments, counts, plan, offsets, capacity), offsets, kept)
    per_ray = _per_ray.get(occupancy)
    total, _, lists = write_exactly(
        offsets,
        kept,
        lambda size: write(*arguments, counts, plan, offsets, size),
        None if per_ray is None else min(int(1.125 * per_ray * n) + 1024, MAX_COUNT),
        lambda total, complete: _check_total(total, complete, kept, step_size),
    )
    if occupancy.is_cuda and n > 0:
        _per_ray[occupancy] = total / n
    t_starts, t_ends, ray_indices = lists
    return PackedSamples(t_starts, t_ends, ray_indices, offsets, kept)


def _check_total(total: int, complete: bool, kept: Tensor, step_size: float) -> None:
    """Raise a BadArgument where the exact list would not fit in the index or in the memory."""
    if not complete:
        n, excess = len(kept), int((~kept).sum())
        raise BadArgument(
            f"step_size: {excess} of {n} rays do not fit in 2**31 - 1 samples (the first {n - excess} have {total}); "
            f"expected a larger one than {step_size}, or near and far closer together"
        )
    advice = f"a larger one than {step_size}, fewer rays, or near and far closer together"
    check_fits("step_size", total, _BYTES, kept.device, advice)


def _check(rays: Rays, occupancy: Tensor, aabb: Tensor, step_size: float, cone_angle: float, jitter: Tensor | None) -> None:
    n = rays.origins.shape[0]
    check_tensor("rays.origins", rays.origins, ("R", 3), torch.float32)
    check_tensor("rays.directions", rays.directions, (n, 3), torch.float32)
    check_tensor("rays.near", rays.near, (n,), torch.float32)
    check_tensor("rays.far", rays.far, (n,), torch.float32)
    check_tensor("occupancy", occupancy, ("L", "X", "Y", "Z"), torch.bool)
    check_tensor("aabb", aabb, (2, 3), torch.float32)
    if jitter is not None:
        check_tensor("jitter", jitter, (n,), torch.float32)
    check_same_device(
        **{"rays.origins": rays.origins, "rays.directions": rays.directions, "rays.near": rays.near, "rays.far": rays.far},
        occupancy=occupancy,
        aabb=aabb,
        jitter=jitter,
    )
    n_levels, *resolution = occupancy.shape
    if not 1 <= n_levels <= _MAX_LEVELS or not all(1 <= cells <= _MAX_RESOLUTION for cells in resolution):
        expected = "1 to 8 levels of 1 to 2**18 cells on each axis"
        raise BadArgument(f"occupancy: expected {expected}, got {list(occupancy.shape)}")
    if not _SMALLEST_STEP <= step_size <= _LARGEST:
        raise BadArgument(f"step_size: expected a positive float32, got {step_size}")
    if not 0 <= cone_angle <= _LARGEST:
        raise BadArgument(f"cone_angle: expected a float32 >= 0, got {cone_angle}")
    if aabb.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((aabb[0] < aabb[1]).all()):
        raise BadArgument(f"aabb: expected minimum < maximum on each axis, got {aabb.tolist()}")


# The reference looks up each lattice sample by itself, with the same float operations as csrc/march.cuh. Candidates, those
# near the outermost box, are numbered through all rays and taken some at a time, so that memory is bounded.

_CHUNK = 2**18


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


def occupied_at(points: Tensor, occupancy: Tensor, aabb: Tensor) -> Tensor:
    """Is the cell occupied that holds the point, in the finest level that contains it? [..., 3] -> [...] bool."""
    levels = occupancy.shape[0]
    low, high = aabb.unbind(0)
    resolution = torch.tensor(occupancy.shape[1:], device=points.device)
    sizes = torch.tensor([2.0**level for level in range(levels)], dtype=points.dtype, device=points.device)
    u = (points - (0.5 * low + 0.5 * high)) * (1.0 / (0.5 * high - 0.5 * low))  # level l: -2^l <= u <= 2^l
    level = (~(u.abs().amax(-1, keepdim=True) <= sizes)).sum(-1)
    inside, level = level < levels, level.clamp(max=levels - 1)
    v = torch.where(inside[..., None], u / sizes[level][..., None], 0.0)
    cell = torch.minimum(((v + 1) * 0.5 * resolution.to(v)).long(), resolution - 1)
    return inside & occupancy[(level, *cell.unbind(-1))]


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
    first, last = candidates(origins, directions, near, far, lattice, bounds)
    ends = (last - first).clamp(max=2**32).long().cumsum(0)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
        i = torch.arange(begin, min(begin + _CHUNK, int(ends[-1])), device=origins.device)
        ray = torch.searchsorted(ends, i, right=True)
        k = last[ray] - (ends[ray] - i)
        middle = lattice.of(ray).middle(k)
        points = origins[ray] + middle.float()[:, None] * directions[ray]
        limit = far.double().clamp(max=_LARGEST)[ray]
        hit = (middle >= near[ray]) & (middle < limit) & occupied(points)
        yield ray[hit], k[hit]


def _hits(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    aabb: Tensor,
    lattice: Lattice,
) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = aabb.double().unbind(0)
    center, half = 0.5 * (low + high), 0.5 * (high - low) * 2 ** (occupancy.shape[0] - 1)
    bounds = torch.stack([center - half, center + half])
    return find_samples(origins, directions, near, far, lattice, bounds, lambda p: occupied_at(p, occupancy, aabb))


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
) -> tuple[Tensor, Tensor]:
    lattice = lattice_of(near, jitter, step_size, cone_angle)
    counts = torch.zeros(origins.shape[0], dtype=torch.int64, device=origins.device)
    for ray, _ in _hits(origins, directions, near, far, occupancy, aabb, lattice):
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
    for ray, k in _hits(origins, directions, near, far, occupancy, aabb, lattice):
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
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle)
    counted = count_reference(*arguments)
    offsets, kept = pack_reference(counted[0], capacity)
    return (*write_reference(*arguments, *counted, offsets, capacity), offsets, kept)


def count_fake(origins: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    plan = torch.library.get_ctx().new_dynamic_size()  # each kernel's own business
    return origins.new_empty(origins.shape[0], dtype=torch.int32), origins.new_empty(plan, dtype=torch.int32)


def write_fake(origins: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    n = arguments[-1]
    return origins.new_empty(n), origins.new_empty(n), origins.new_empty(n, dtype=torch.int32)  # type: ignore[arg-type]


def march_pack_fake(origins: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_rays = origins.shape[0]
    offsets, kept = origins.new_empty(n_rays + 1, dtype=torch.int32), origins.new_empty(n_rays, dtype=torch.bool)
    return (*write_fake(origins, *arguments), offsets, kept)


_ARGUMENTS = (
    "Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, Tensor aabb, "
    "float step_size, float cone_angle"
)
_library.define("march_count", f"({_ARGUMENTS}) -> (Tensor counts, Tensor plan)", count_reference, count_fake)
_library.define(
    "march_write",
    f"({_ARGUMENTS}, Tensor counts, Tensor plan, Tensor offsets, int n) "
    "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices)",
    write_reference,
    write_fake,
)
_library.define(
    "march_pack",
    f"({_ARGUMENTS}, int capacity) -> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets, Tensor kept)",
    march_pack_reference,
    march_pack_fake,
)
