"""Samples along rays, in the occupied cells of nested grids only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops._exact import write_exactly
from lightning_nerf.ops.march_reference import candidates as candidates
from lightning_nerf.ops.march_reference import count_reference, march_pack_reference, write_reference
from lightning_nerf.ops.march_reference import find_samples as find_samples
from lightning_nerf.ops.march_reference import lattice_of as lattice_of
from lightning_nerf.ops.memory import check_capacity_fits, check_fits
from lightning_nerf.ops.pack import MAX_COUNT, check_capacity, pack
from lightning_nerf.types import PackedSamples, Rays

_MAX_LEVELS = 8
_MAX_RESOLUTION = 2**18
_MAX_BINS = 2**16 - 1
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
    bins: Tensor | None = None,
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
        occupancy: [L, X, Y, Z] bool, 1 <= L <= 8, and 1 <= X, Y, Z <= 2^18; with ``bins`` [B, L, X, Y, Z], a grid for each
            bin, 1 <= B < 2^16.
        aabb: [2, 3] float32, corners of level 0. Without volume: no samples (ValueError for CPU tensors).
        step_size: least dt, > 0, in units of t.
        cone_angle: growth of dt with t, >= 0.
        jitter: [R] float32 in [0, 1), where in its first step a ray starts. None: 0.
        capacity: None: exactly as many samples as there are, one host synchronization. Else N, without synchronization:
            rays that don't fit (see :func:`~lightning_nerf.ops.pack.pack`) have ``kept`` False and no samples.
        limit: of each ray's samples, the first so many only, >= 0. None: all.
        bins: [R] int32, which of B grids each ray marches through, say by its time; where there is no such grid, the
            nearest. On CUDA a call reads all B grids: where all rays have one bin, pass its grid alone.

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
    return _march(*kernels, rays, occupancy, aabb, step_size, cone_angle, jitter, capacity, limit, bins)


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
    bins: Tensor | None = None,
) -> PackedSamples:
    """:func:`march` by the references of its ops."""
    references = (count_reference, write_reference, march_pack_reference)
    return _march(*references, rays, occupancy, aabb, step_size, cone_angle, jitter, capacity, limit, bins)


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
    bins: Tensor | None,
) -> PackedSamples:
    _check(rays, occupancy, aabb, step_size, cone_angle, jitter, bins)
    n = rays.origins.shape[0]
    arguments = (
        *(a.detach().contiguous() for a in (rays.origins, rays.directions, rays.near, rays.far)),
        None if jitter is None else jitter.detach().contiguous(),
        occupancy.contiguous(),
        aabb.detach().contiguous(),
        float(step_size),
        float(cone_angle),
        None if bins is None else bins.contiguous(),
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


def _check(
    rays: Rays,
    occupancy: Tensor,
    aabb: Tensor,
    step_size: float,
    cone_angle: float,
    jitter: Tensor | None,
    bins: Tensor | None,
) -> None:
    n = rays.origins.shape[0]
    check_tensor("rays.origins", rays.origins, ("R", 3), torch.float32)
    check_tensor("rays.directions", rays.directions, (n, 3), torch.float32)
    check_tensor("rays.near", rays.near, (n,), torch.float32)
    check_tensor("rays.far", rays.far, (n,), torch.float32)
    shape = ("L", "X", "Y", "Z")
    check_tensor("occupancy", occupancy, shape if bins is None else ("B", *shape), torch.bool)
    check_tensor("aabb", aabb, (2, 3), torch.float32)
    if jitter is not None:
        check_tensor("jitter", jitter, (n,), torch.float32)
    if bins is not None:
        check_tensor("bins", bins, (n,), torch.int32)
        if not 1 <= len(occupancy) <= _MAX_BINS:
            raise BadArgument(f"occupancy: expected 1 to 2**16 - 1 bins, got {list(occupancy.shape)}")
    check_same_device(
        **{"rays.origins": rays.origins, "rays.directions": rays.directions, "rays.near": rays.near, "rays.far": rays.far},
        occupancy=occupancy,
        aabb=aabb,
        jitter=jitter,
        bins=bins,
    )
    n_levels, *resolution = occupancy.shape[-4:]
    if not 1 <= n_levels <= _MAX_LEVELS or not all(1 <= cells <= _MAX_RESOLUTION for cells in resolution):
        expected = "1 to 8 levels of 1 to 2**18 cells on each axis"
        raise BadArgument(f"occupancy: expected {expected}, got {list(occupancy.shape)}")
    if not _SMALLEST_STEP <= step_size <= _LARGEST:
        raise BadArgument(f"step_size: expected a positive float32, got {step_size}")
    if not 0 <= cone_angle <= _LARGEST:
        raise BadArgument(f"cone_angle: expected a float32 >= 0, got {cone_angle}")
    if aabb.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((aabb[0] < aabb[1]).all()):
        raise BadArgument(f"aabb: expected minimum < maximum on each axis, got {aabb.tolist()}")


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
    "float step_size, float cone_angle, Tensor? bins"
)
library.define("march_count", f"({_ARGUMENTS}) -> (Tensor counts, Tensor plan)", count_reference, count_fake)
library.define(
    "march_write",
    f"({_ARGUMENTS}, Tensor counts, Tensor plan, Tensor offsets, int n) "
    "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices)",
    write_reference,
    write_fake,
)
library.define(
    "march_pack",
    f"({_ARGUMENTS}, int capacity) -> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets, Tensor kept)",
    march_pack_reference,
    march_pack_fake,
)
