"""Rays through boxes and through the occupied cells of grids, with NerfAcc's signatures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.nerfacc._traverse import sample, termination_planes
from lightning_nerf.nerfacc.data_specs import RayIntervals, RaySamples
from lightning_nerf.nerfacc.errors import argument_errors
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.types import PackedSamples, Rays


@argument_errors
@torch.no_grad()
def ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float = -math.inf,
    far_plane: float = math.inf,
    miss_value: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where rays enter and leave boxes. A box behind the origin is a miss.

    Whether a box is hit does not depend on the two planes: they only clamp t. A ray that touches a box in one point, or has
    NaN in it, misses.

    Args:
        rays_o: [R, 3] float32 origins, in world units.
        rays_d: [R, 3] float32 directions, of any length; t is in units of it.
        aabbs: [M, 6] float32, minimum and maximum corner.
        near_plane, far_plane: t is clamped to them.
        miss_value: t of a miss.

    Returns:
        ``(t_mins [R, M], t_maxs [R, M], hits [R, M] bool)``. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape, dtype or device.

    Source: Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986.

    >>> rays_o, rays_d = torch.tensor([[-2.0, 0.0, 0.0], [-2.0, 5.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3)
    >>> nerfacc.ray_aabb_intersect(rays_o, rays_d, torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]]))
    (tensor([[1.],
            [inf]]), tensor([[3.],
            [inf]]), tensor([[ True],
            [False]]))
    """
    check_tensor("rays_o", rays_o, ("R", 3), torch.float32)
    check_tensor("rays_d", rays_d, (rays_o.shape[0], 3), torch.float32)
    check_tensor("aabbs", aabbs, ("M", 6), torch.float32)
    check_same_device(rays_o=rays_o, rays_d=rays_d, aabbs=aabbs)
    t_mins, t_maxs, hits = ray_aabb(rays_o, rays_d, aabbs.reshape(-1, 2, 3))
    return _clamp(t_mins, t_maxs, hits & (t_maxs > 0), near_plane, far_plane, miss_value)


def _ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float = -math.inf,
    far_plane: float = math.inf,
    miss_value: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`ray_aabb_intersect` in plain torch, of any float dtype and differentiable, for directions without zeros."""
    sides = (aabbs.unflatten(-1, (2, 3)) - rays_o[:, None, None]) / rays_d[:, None, None]  # [R, M, 2, 3]
    t_mins, t_maxs = sides.amin(-2).amax(-1), sides.amax(-2).amin(-1)
    return _clamp(t_mins, t_maxs, (t_mins < t_maxs) & (t_maxs > 0), near_plane, far_plane, miss_value)


def _clamp(
    t_mins: Tensor, t_maxs: Tensor, hits: Tensor, near: float, far: float, miss_value: float
) -> tuple[Tensor, Tensor, Tensor]:
    t_mins, t_maxs = (torch.where(hits, t.clamp(near, far), miss_value) for t in (t_mins, t_maxs))
    return t_mins, t_maxs, hits


@argument_errors
@torch.no_grad()
def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float | None = 1e-3,
    cone_angle: float | None = 0.0,
    traverse_steps_limit: int | None = None,
    over_allocate: bool | None = False,
    rays_mask: Tensor | None = None,
    t_sorted: Tensor | None = None,
    t_indices: Tensor | None = None,
    hits: Tensor | None = None,
) -> tuple[RayIntervals, RaySamples, Tensor]:
    """Find the steps of rays whose midpoints are in occupied cells.

    Steps are those of :func:`lightning_nerf.ops.march.march`: from the near plane on, of length ``max(step_size,
    cone_angle * t)``. Where a point is in several boxes, the first of them counts. Boxes that each are twice as large as
    the one before, up to 8, take the march's kernels; others plain torch, whose time is that of the steps in all boxes.

    Args:
        rays_o: [R, 3] float32 origins, in world units. A ray with NaN or inf in it has no samples.
        rays_d: [R, 3] float32 directions, of any length; t is in units of it.
        binaries: [M, X, Y, Z] bool, the occupied cells of each box.
        aabbs: [M, 6] float32, minimum and maximum corners.
        near_planes, far_planes: [R] float32. None: 0 and infinity.
        step_size: least length of a step. None or <= 0: one interval for each occupied cell that is crossed, in plain
            torch.
        cone_angle: growth of steps with t, >= 0. None: 0.
        traverse_steps_limit: at most so many samples per ray. None or <= 0: all.
        over_allocate: give each ray that is not masked room for ``traverse_steps_limit`` samples and twice as many edges.
            What is not used is zero, its ``is_valid``, ``is_left`` and ``is_right`` False; ``packed_info`` counts used
            entries only, as if the others were left out.
        rays_mask: [R] bool, False: a ray without samples.
        t_sorted, t_indices, hits: rays' intersections with boxes, for compatibility. They are not read: looking them up
            takes longer than finding them.

    Returns:
        ``(intervals, samples, termination_planes)``, flattened, not differentiable. Intervals that adjoin share an edge.
        Samples are their midpoints. ``termination_planes`` [R] is where each ray's traversal ended and the next may begin:
        behind its last sample where it reached the limit, else behind the boxes or the far plane, or its near plane where
        it meets no box.

    Raises:
        NerfAccArgument: a wrong argument, on a CPU also a single box without volume; ``over_allocate`` without a limit;
            2^31 samples or more.

    >>> rays_o, rays_d = torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> binaries = torch.tensor([False, True]).view(1, 2, 1, 1)  # of two cells along x, the second is occupied
    >>> aabbs = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    >>> intervals, samples, _ = nerfacc.traverse_grids(rays_o, rays_d, binaries, aabbs, step_size=0.25)
    >>> intervals.vals
    tensor([1.5000, 1.7500, 2.0000])
    >>> samples.vals
    tensor([1.6250, 1.8750])
    """
    check_tensor("rays_o", rays_o, ("R", 3), torch.float32)
    n_rays = rays_o.shape[0]
    check_tensor("rays_d", rays_d, (n_rays, 3), torch.float32)
    check_tensor("binaries", binaries, ("M", "X", "Y", "Z"), torch.bool)
    check_tensor("aabbs", aabbs, (binaries.shape[0], 6), torch.float32)
    for name, planes in (("near_planes", near_planes), ("far_planes", far_planes)):
        if planes is not None:
            check_tensor(name, planes, (n_rays,), torch.float32)
    if rays_mask is not None:
        check_tensor("rays_mask", rays_mask, (n_rays,), torch.bool)
    check_same_device(
        rays_o=rays_o,
        rays_d=rays_d,
        binaries=binaries,
        aabbs=aabbs,
        near_planes=near_planes,
        far_planes=far_planes,
        rays_mask=rays_mask,
    )
    if 0 in binaries.shape:
        raise BadArgument(f"binaries: expected boxes and cells, got shape {list(binaries.shape)}")
    looked_at = aabbs.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and len(aabbs) == 1 and not bool((aabbs[:, :3] < aabbs[:, 3:]).all()):
        raise BadArgument(f"aabbs: expected minimum < maximum on each axis, got {aabbs.tolist()}")
    step_size, cone_angle = step_size or 0.0, cone_angle or 0.0
    if not cone_angle >= 0:
        raise BadArgument(f"cone_angle: expected >= 0, got {cone_angle}")
    limit = traverse_steps_limit if traverse_steps_limit is not None and traverse_steps_limit > 0 else None
    if over_allocate and limit is None:
        raise BadArgument(f"over_allocate: expected a traverse_steps_limit > 0 with it, got {traverse_steps_limit}")
    near = rays_o.new_zeros(n_rays) if near_planes is None else near_planes
    far = rays_o.new_full((n_rays,), math.inf) if far_planes is None else far_planes
    if rays_mask is not None:
        far = far.masked_fill(~rays_mask, -math.inf)
    rays = Rays(rays_o, rays_d, near, far)
    samples = sample(rays, binaries, aabbs, step_size, cone_angle, limit=limit)
    planes = termination_planes(rays, aabbs.contiguous(), samples, step_size, cone_angle, limit)
    room = None
    if over_allocate and limit is not None:
        mask = torch.ones_like(near, dtype=torch.bool) if rays_mask is None else rays_mask
        room = mask.long() * limit
    return (*_pack(samples, room), planes)


def _pack(samples: PackedSamples, room: Tensor | None) -> tuple[RayIntervals, RaySamples]:
    """NerfAcc's structures, with room for ``room`` [R] samples of each ray, or None: as many as it has."""
    t_starts, t_ends, ray, offsets = samples.t_starts, samples.t_ends, samples.ray_indices.long(), samples.offsets.long()
    n, device = len(t_starts), t_starts.device
    # Whether a sample begins where the ray's one before it ends.
    adjoins = torch.zeros(n, dtype=torch.bool, device=device)
    adjoins[1:] = (ray[1:] == ray[:-1]) & (t_starts[1:] == t_ends[:-1])
    # Each sample has a right edge, each that doesn't adjoin also a left one.
    lefts = torch.cat([ray.new_zeros(1), (~adjoins).cumsum(0)])
    edge_offsets = offsets + lefts[offsets]
    right = torch.arange(n, device=device) + lefts[1:]
    place, right_place = torch.arange(n, device=device), right
    if room is None:
        size, edges = n, int(edge_offsets[-1])
    else:
        starts = room.cumsum(0) - room
        place = place - offsets[ray] + starts[ray]
        right_place = right - edge_offsets[ray] + 2 * starts[ray]
        size = int(room.sum())
        edges = 2 * size
    midpoints = RaySamples(
        vals=t_starts.new_zeros(size).index_copy_(0, place, 0.5 * (t_starts + t_ends)),
        packed_info=torch.stack([offsets[:-1], offsets.diff()], -1),
        ray_indices=ray.new_zeros(size).index_copy_(0, place, ray),
        is_valid=torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, place, True),
    )
    is_left, is_right = (torch.zeros(edges, dtype=torch.bool, device=device) for _ in range(2))
    vals, indices = t_starts.new_zeros(edges), ray.new_zeros(edges)
    for at, t, flags in ((right_place - 1, t_starts, is_left), (right_place, t_ends, is_right)):
        vals.index_copy_(0, at, t)
        indices.index_copy_(0, at, ray)
        flags.index_fill_(0, at, True)
    intervals = RayIntervals(
        vals=vals,
        packed_info=torch.stack([edge_offsets[:-1], edge_offsets.diff()], -1),
        ray_indices=indices,
        is_left=is_left,
        is_right=is_right,
    )
    return intervals, midpoints


def _enlarge_aabb(aabb: Tensor, factor: float) -> Tensor:
    """The box [6], ``factor`` times as large about its center."""
    low, high = aabb[:3], aabb[3:]
    center, half = (low + high) / 2, (high - low) / 2
    return torch.cat([center - half * factor, center + half * factor])


def _query(x: Tensor, data: Tensor, base_aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Values of nested grids at points, each in the finest level that contains it.

    Args:
        x: [N, 3] points.
        data: [M, X, Y, Z] values of M boxes, each twice as large as the one before.
        base_aabb: [6], the first box.

    Returns:
        Values [N], zero outside of all boxes, and whether the point is inside of one, [N] bool. A point on the surface of a
        box counts to the next larger one.
    """
    low, high = base_aabb[:3], base_aabb[3:]
    centered = (x - low) / (high - low) - 0.5  # level l: below 2^l / 2
    exponent = torch.frexp(centered.abs().amax(-1).clamp(min=0.1)).exponent  # 2^(exponent - 1) <= value < 2^exponent
    level = (exponent.long() + 1).clamp(min=0)
    inside = (level < data.shape[0]) & centered.isfinite().all(-1)
    level = torch.where(inside, level, 0)
    fraction = torch.where(inside[:, None], centered / (2**level)[:, None] + 0.5, 0.0)
    size = torch.tensor(data.shape[1:], device=x.device)
    cell = torch.minimum((fraction * size).long(), size - 1)
    return data[(level, *cell.unbind(-1))] * inside, inside
