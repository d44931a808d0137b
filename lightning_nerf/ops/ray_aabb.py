"""Where rays enter and leave axis-aligned boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import check_same_device, check_tensor
from lightning_nerf.ops import library


def ray_aabb(
    origins: Tensor, directions: Tensor, aabbs: Tensor, near: Tensor | None = None, far: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The intervals of ``origins + t * directions`` inside of boxes, restricted to ``near <= t <= far``.

    Per axis the line is between the two planes of the box for t between (low - o) / d and (high - o) / d; the box is the
    intersection of its three slabs. A ray with d = 0 on an axis is inside of that slab for all t, where low <= o <= high,
    or never. A hit is an interval of positive length: touching an edge or a corner is a miss, and so is a box without
    volume (low >= high on an axis), and NaN anywhere in ray or box.

    Args:
        origins: [R, 3] float32.
        directions: [R, 3] float32, of any length; t is in units of it.
        aabbs: [M, 2, 3] float32, minimum and maximum corners.
        near: [R] float32. None: no limit; t is negative behind the origin.
        far: [R] float32. None: no limit.

    Returns:
        ``(t_mins [R, M] float32, t_maxs [R, M] float32, hits [R, M] bool)``; for a miss both t are inf. Not
        differentiable.

    Source: Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986.
    """
    check_tensor("origins", origins, ("R", 3), torch.float32)
    check_tensor("directions", directions, (origins.shape[0], 3), torch.float32)
    check_tensor("aabbs", aabbs, ("M", 2, 3), torch.float32)
    for name, limit in (("near", near), ("far", far)):
        if limit is not None:
            check_tensor(name, limit, (origins.shape[0],), torch.float32)
    check_same_device(origins=origins, directions=directions, aabbs=aabbs, near=near, far=far)
    arguments = (a.detach().contiguous() for a in (origins, directions, aabbs))
    t_mins, t_maxs, hits = torch.ops.lightning_nerf.ray_aabb(*arguments)
    if near is None and far is None:
        return t_mins, t_maxs, hits
    if near is not None:
        t_mins = torch.maximum(t_mins, near.detach()[:, None])
    if far is not None:
        t_maxs = torch.minimum(t_maxs, far.detach()[:, None])
    hits = hits & (t_mins < t_maxs)
    return torch.where(hits, t_mins, math.inf), torch.where(hits, t_maxs, math.inf), hits


def reference(origins: Tensor, directions: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    o, d = origins[:, None], directions[:, None]  # [R, 1, 3]
    low, high = aabbs.unbind(1)  # [M, 3]
    parallel = d == 0
    t = torch.stack([(low - o) / d, (high - o) / d])
    hits = ((low < high) & torch.where(parallel, (low <= o) & (o <= high), ~t.isnan().any(0))).all(-1)
    t_mins = torch.where(parallel, -math.inf, t.amin(0)).amax(-1)
    t_maxs = torch.where(parallel, math.inf, t.amax(0)).amin(-1)
    hits = hits & (t_mins < t_maxs)
    return torch.where(hits, t_mins, math.inf), torch.where(hits, t_maxs, math.inf), hits


def fake(origins: Tensor, directions: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = origins.new_empty((origins.shape[0], aabbs.shape[0]))
    return t, torch.empty_like(t), torch.empty_like(t, dtype=torch.bool)


library.define(
    "ray_aabb",
    "(Tensor origins, Tensor directions, Tensor aabbs) -> (Tensor t_mins, Tensor t_maxs, Tensor hits)",
    reference,
    fake,
)
