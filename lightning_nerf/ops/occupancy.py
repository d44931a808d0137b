"""The occupancy grid's ops: choose cells, draw a point in each, keep the newest values, decay and threshold in place.

A grid has L nested levels of X x Y x Z cells. Level l covers the box ``aabb`` scaled by 2^l about its center. A cell's
index counts over all levels, ``((l * X + x) * Y + y) * Z + z``. Per cell there are two states; the second follows from the
first:

    occs      float32: the running maximum of the cell's opacity (density times step size); negative: no camera sees it
    binaries  bool: whether rays are marched through it

The rule is that of Müller, Evans, Schied, Keller, "Instant neural graphics primitives with a multiresolution hash
encoding", SIGGRAPH 2022, appendix C, with the threshold of NerfAcc (the grid's mean where that is lower).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.random import STREAM_CELL_POINTS, STREAM_CELLS, random_uniform


def occupancy_select(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> Tensor:
    """Draw cells to evaluate, with replacement: per level, ``n_uniform`` among all and ``n_occupied`` among occupied ones.

    Both draws are uniform and independent (to 2^-32 times the number of cells). In a level where nothing is occupied, the
    second draw is among all cells as well. No host synchronization: the number of cells is fixed.

    Args:
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; draw i is a function of (key, i) and ``binaries``.
        binaries: [L, X, Y, Z] bool, fewer than 2^31 cells.
        n_uniform, n_occupied: draws per level, >= 0.

    Returns:
        [L * (n_uniform + n_occupied)] int32, cell indices level by level, the uniform ones first.
    """
    _check_select(key, binaries, n_uniform, n_occupied)
    return torch.ops.lightning_nerf.occupancy_select(key, binaries.contiguous(), n_uniform, n_occupied)


def occupancy_cover(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> Tensor:
    """:func:`occupancy_select`, but a level that has no more than ``n_occupied`` occupied cells gets all of them.

    Then the second draw is no draw: it takes the level's occupied cells in turn, from the first on, until there are
    ``n_occupied``, so that each is there at least once.
    """
    _check_select(key, binaries, n_uniform, n_occupied)
    return torch.ops.lightning_nerf.occupancy_cover(key, binaries.contiguous(), n_uniform, n_occupied)


def _check_select(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> None:
    check_tensor("key", key, (3,), torch.int64)
    check_tensor("binaries", binaries, ("L", "X", "Y", "Z"), torch.bool)
    check_same_device(key=key, binaries=binaries)
    if not 1 <= binaries.numel() < 2**31:
        raise BadArgument(f"binaries: expected 1 to 2**31 - 1 cells, got shape {list(binaries.shape)}")
    if n_uniform < 0 or n_occupied < 0:
        raise BadArgument(f"expected n_uniform >= 0 and n_occupied >= 0, got {n_uniform} and {n_occupied}")


def cell_points(key: Tensor, cells: Tensor, aabb: Tensor, resolution: Sequence[int]) -> Tensor:
    """One uniform point in each of M cells; a cell that is listed twice gets two points.

    Args:
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; point i is a function of (key, i) and ``cells[i]``.
        cells: [M] int32 indices, each that of a cell.
        aabb: [2, 3] float32, minimum and maximum corner of level 0.
        resolution: (X, Y, Z).

    Returns:
        [M, 3] float32 positions in world units. Not differentiable.
    """
    check_tensor("key", key, (3,), torch.int64)
    check_tensor("cells", cells, ("M",), torch.int32)
    check_tensor("aabb", aabb, (2, 3), torch.float32)
    check_same_device(key=key, cells=cells, aabb=aabb)
    x, y, z = _resolution(resolution)
    return torch.ops.lightning_nerf.occupancy_points(key, cells.contiguous(), aabb.contiguous(), x, y, z)


def occupancy_newest(cells: Tensor, values: Tensor, n_cells: int) -> Tensor:
    """The largest new value of each cell, -1 where it has none. Order and repetition of the cells do not matter.

    Values that are negative or not finite do not count, nor do cells outside [0, n_cells). Grids that several processes
    evaluated in parts combine by taking the maximum of these tensors.

    Args:
        cells: [M] int32.
        values: [M] float32. No gradient flows.
        n_cells: number of cells of all levels.

    Returns:
        [n_cells] float32.
    """
    check_tensor("cells", cells, ("M",), torch.int32)
    check_tensor("values", values, (cells.shape[0],), torch.float32)
    check_same_device(cells=cells, values=values)
    if not 0 <= n_cells < 2**31:
        raise BadArgument(f"n_cells: expected 0 <= n_cells < 2**31, got {n_cells}")
    return torch.ops.lightning_nerf.occupancy_newest(cells.contiguous(), values.detach().contiguous(), n_cells)


def occupancy_update_(
    occs: Tensor, binaries: Tensor, mean: Tensor, newest: Tensor, *, decay: float, threshold: float
) -> None:
    """Decay the evaluated cells, take in their newest values, threshold; all in place.

    .. math::
        occs_c &\\leftarrow \\max(decay \\cdot occs_c, newest_c)  \\quad \\text{where } occs_c \\ge 0, newest_c \\ge 0 \\\\
        mean &\\leftarrow \\text{mean of all } occs_c \\ge 0 \\text{ (0 if there are none)} \\\\
        binaries_c &\\leftarrow occs_c > 0 \\;\\land\\; occs_c \\ge \\min(mean, threshold)

    Cells that were not evaluated keep their value; cells that no camera sees (occs < 0) stay so, and unoccupied. The mean
    is summed in float64 in a fixed order: the same bits at any number of threads. A field of constant density fills the
    grid: its values equal their mean, and an empty grid could never train.

    Args:
        occs: [n] float32, contiguous.
        binaries: bool with n elements, any shape, contiguous.
        mean: 0-d float32.
        newest: [n] float32, from :func:`occupancy_newest`.
        decay: in [0, 1].
        threshold: >= 0; an opacity.
    """
    check_tensor("occs", occs, ("n",), torch.float32)
    check_tensor("binaries", binaries, tuple(binaries.shape), torch.bool)
    check_tensor("mean", mean, (), torch.float32)
    check_tensor("newest", newest, (occs.shape[0],), torch.float32)
    check_same_device(occs=occs, binaries=binaries, mean=mean, newest=newest)
    if binaries.numel() != occs.numel():
        raise BadArgument(f"binaries: expected {occs.numel()} cells as in occs, got shape {list(binaries.shape)}")
    if not (occs.is_contiguous() and binaries.is_contiguous()):
        raise BadArgument("occs, binaries: expected contiguous tensors, since they are written in place")
    if not 0 <= decay <= 1 or not threshold >= 0:
        raise BadArgument(f"expected 0 <= decay <= 1 and threshold >= 0, got decay={decay}, threshold={threshold}")
    torch.ops.lightning_nerf.occupancy_update_(occs, binaries, mean, newest.contiguous(), decay, threshold)


@torch.no_grad()
def mark_invisible_cells(
    occs: Tensor,
    binaries: Tensor,
    aabb: Tensor,
    c2w: Tensor,
    intrinsics: Tensor,
    width: int | Tensor,
    height: int | Tensor,
    near: float | Tensor = 0.0,
) -> None:
    """Take cells that no camera sees out of the grid, in place: occs -1, binaries False. Others keep their state.

    A camera sees a cell if the ball around it (radius: half the cell's diagonal) reaches into the camera's frustum, beyond
    distance ``near``. Nothing occludes. Conservative: a ball that only comes near an edge of the frustum counts as seen.

    Args:
        occs: [L * X * Y * Z] float32.
        binaries: [L, X, Y, Z] bool.
        aabb: [2, 3] float32, level 0.
        c2w: [V, 3, 4] camera to world, columns right, up, backwards (the camera looks along its -z), position; the first
            three are orthonormal.
        intrinsics: [4] or [V, 4], fx, fy, cx, cy in pixels; pixel (0, 0) spans [0, 1) x [0, 1), y points down.
        width, height: of the images, in pixels; numbers or [V].
        near: distance from the camera, in world units, that rays begin at; a number or [V].

    Runs once per scene, in plain torch, in float64, a bounded number of cells at a time: O(L X Y Z V).
    """
    check_tensor("binaries", binaries, ("L", "X", "Y", "Z"), torch.bool)
    check_tensor("occs", occs, (binaries.numel(),), torch.float32)
    check_tensor("aabb", aabb, (2, 3), torch.float32)
    check_tensor("c2w", c2w, ("V", 3, 4), (torch.float32, torch.float64))
    views = c2w.shape[0]
    check_tensor("intrinsics", intrinsics, (4,) if intrinsics.ndim == 1 else (views, 4), (torch.float32, torch.float64))
    check_same_device(occs=occs, binaries=binaries, aabb=aabb, c2w=c2w, intrinsics=intrinsics)
    planes = _frustum_planes(c2w.double(), intrinsics.double().expand(views, 4), width, height)
    shortened = bool((torch.as_tensor(near) > 0).any())
    resolution = binaries.shape[1:]
    flat = binaries.view(-1)
    step = max(1, 2**20 // max(1, views))
    for begin in range(0, occs.numel(), step):
        cells = torch.arange(begin, min(begin + step, occs.numel()), device=occs.device)
        centers, diagonals = _cell_boxes(cells, aabb.double(), resolution)
        depth_inside = centers.new_full((len(cells), views), torch.inf)  # of the center: distance to the nearest plane
        for normals, offsets in planes:
            depth_inside = torch.minimum(depth_inside, torch.addmm(offsets, centers, normals.T))
        if shortened:
            depth_inside = torch.minimum(depth_inside, torch.cdist(centers, c2w[:, :, 3].double()) - near)
        seen = (depth_inside >= -0.5 * diagonals[:, None]).any(-1)
        occs[begin : begin + step].masked_fill_(~seen, -1.0)
        flat[begin : begin + step].logical_and_(seen)


def _resolution(resolution: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = resolution
    if min(x, y, z) < 1 or x * y * z >= 2**31:
        raise BadArgument(f"resolution: expected three numbers >= 1 with a product below 2**31, got {list(resolution)}")
    return x, y, z


def _frustum_planes(
    c2w: Tensor, intrinsics: Tensor, width: int | Tensor, height: int | Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Left, right, top, bottom, front: unit normals n [V, 3] and offsets d [V]; ``n . x + d >= 0`` inside."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    # In camera coordinates the depth is -z, a pixel's column is cx + fx x / depth, its row cy - fy y / depth.
    sides = [(fx, zero, -cx), (-fx, zero, cx - width), (zero, -fy, -cy), (zero, fy, cy - height), (zero, zero, -one)]
    planes = []
    for side in sides:
        normal = torch.nn.functional.normalize(torch.stack(side, -1), dim=-1)
        world = (c2w[:, :, :3] @ normal[:, :, None])[:, :, 0]
        planes.append((world, -(world * c2w[:, :, 3]).sum(-1)))
    return planes


def _cell_index(cells: Tensor, resolution: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Level [M] and place [M, 3] of cells [M]."""
    x, y, z = resolution
    cells = cells.long()
    return cells // (x * y * z), torch.stack([cells // (y * z) % x, cells // z % y, cells % z], -1)


def _place(level: Tensor, fraction: Tensor, aabb: Tensor) -> Tensor:
    """World position of a place in [0, 1]^3 of each level's box."""
    half = (aabb[1] - aabb[0]) * 0.5 * (torch.ones_like(level) << level)[:, None]
    return (aabb[0] + aabb[1]) * 0.5 + half * (2 * fraction - 1)


def _cell_boxes(cells: Tensor, aabb: Tensor, resolution: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centers [M, 3] and diagonals [M] of cells [M]."""
    level, index = _cell_index(cells, resolution)
    size = torch.tensor(tuple(resolution), dtype=aabb.dtype, device=aabb.device)
    diagonal = ((aabb[1] - aabb[0]) / size).norm()
    return _place(level, (index + 0.5) / size, aabb), diagonal * (torch.ones_like(level) << level)


def select_reference(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int, cover: bool = False) -> Tensor:
    levels, n = binaries.shape[0], binaries[0].numel()
    words = (random_uniform(key, STREAM_CELLS, levels * (n_uniform + n_occupied), 2) * 2.0**24).long()
    draws = ((words[:, 0] << 8) | (words[:, 1] >> 16)).view(levels, n_uniform + n_occupied)
    cells = (draws * n) >> 32
    ends = binaries.view(levels, n).cumsum(-1)  # int64, inclusive
    total = ends[:, -1:]
    rank = (draws * total) >> 32
    second = torch.arange(n_uniform + n_occupied, device=cells.device) - n_uniform
    if cover:
        rank = torch.where(total <= n_occupied, second.clamp(min=0) % total.clamp(min=1), rank)
    occupied = torch.searchsorted(ends, rank, right=True).clamp(max=n - 1)
    cells = torch.where((second >= 0) & (total > 0), occupied, cells)
    return (cells + n * torch.arange(levels, device=cells.device)[:, None]).flatten().to(torch.int32)


def cover_reference(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> Tensor:
    return select_reference(key, binaries, n_uniform, n_occupied, cover=True)


def select_fake(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> Tensor:
    return key.new_empty(binaries.shape[0] * (n_uniform + n_occupied), dtype=torch.int32)


def points_reference(key: Tensor, cells: Tensor, aabb: Tensor, x: int, y: int, z: int) -> Tensor:
    level, index = _cell_index(cells, (x, y, z))
    u = random_uniform(key, STREAM_CELL_POINTS, cells.shape[0], 3)
    return _place(level, (index + u) / torch.tensor([x, y, z], device=cells.device), aabb)


def newest_reference(cells: Tensor, values: Tensor, n: int) -> Tensor:
    newest = values.new_full((n,), -1.0)
    if n == 0:
        return newest
    counts = (values >= 0) & (values < torch.inf) & (cells >= 0) & (cells < n)
    index = torch.where(counts, cells, 0).long()
    return newest.scatter_reduce_(0, index, torch.where(counts, values.abs(), -1.0), "amax")  # abs: no -0


def _tree_sum(values: Tensor) -> Tensor:
    """Sum in an order that depends on the length alone: rows of 1024, each added up by one thread."""
    while values.numel() > 1024:
        values = torch.nn.functional.pad(values, (0, -values.numel() % 1024)).view(-1, 1024).sum(-1)
    return values.sum()


def update_reference(occs: Tensor, binaries: Tensor, mean: Tensor, newest: Tensor, decay: float, threshold: float) -> None:
    decayed = torch.maximum(occs * decay, newest)
    occs.copy_(torch.where((occs >= 0) & (newest >= 0), decayed, occs))
    visible = occs >= 0
    count = visible.sum()
    average = _tree_sum(torch.where(visible, occs, 0).double()) / count.clamp(min=1)
    mean.copy_(average)
    floor = mean.clamp(max=threshold)
    binaries.copy_(((occs > 0) & (occs >= floor)).view_as(binaries))


_SELECT = "(Tensor key, Tensor binaries, int n_uniform, int n_occupied) -> Tensor"
library.define("occupancy_select", _SELECT, select_reference, select_fake)
library.define("occupancy_cover", _SELECT, cover_reference, select_fake)
library.define(
    "occupancy_points",
    "(Tensor key, Tensor cells, Tensor aabb, int x, int y, int z) -> Tensor",
    points_reference,
    lambda key, cells, aabb, x, y, z: aabb.new_empty(cells.shape[0], 3),
)
library.define(
    "occupancy_newest",
    "(Tensor cells, Tensor values, int n) -> Tensor",
    newest_reference,
    lambda cells, values, n: values.new_empty(n),
)
library.define(
    "occupancy_update_",
    "(Tensor(a!) occs, Tensor(b!) binaries, Tensor(c!) mean, Tensor newest, float decay, float threshold) -> ()",
    update_reference,
    lambda occs, binaries, mean, newest, decay, threshold: None,
)
