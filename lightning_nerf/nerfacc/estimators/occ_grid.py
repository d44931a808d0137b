"""The occupancy grid: rays skip what was found empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.argument_types import names_types
from lightning_nerf.checks import BadArgument, check_returned, check_same_device, check_tensor
from lightning_nerf.nerfacc._traverse import sample
from lightning_nerf.nerfacc.estimators.base import AbstractEstimator
from lightning_nerf.nerfacc.grid import _enlarge_aabb
from lightning_nerf.ops.occupancy import cell_points, occupancy_cover, occupancy_newest, occupancy_update_
from lightning_nerf.ops.visibility import prune, prune_from
from lightning_nerf.types import PackedSamples, Rays

PointFn = Callable[[Tensor], Tensor]
SampleFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class OccGridEstimator(AbstractEstimator):
    """Marches rays through the occupied cells of nested grids, whose state follows the field during training.

    Every buffer is written in place, and nothing on CUDA synchronises but :meth:`sampling`, for the number of samples.
    ``state_dict`` has NerfAcc's keys, dtypes and shapes. Random draws are torch's, so ``torch.manual_seed`` fixes them.

    Args:
        roi_aabb: [6] minimum and maximum corner of the first level; level l is 2^l times as large about its centre.
        resolution: cells per axis, one number or three.
        levels: number of nested grids, >= 1.

    Source: Müller et al., "Instant neural graphics primitives", SIGGRAPH 2022, appendix C; Li et al., "NerfAcc", ICCV 2023.
    """

    DIM: int = 3

    resolution: Tensor  # [3] int32
    aabbs: Tensor  # [L, 6] float32
    occs: Tensor  # [L * X * Y * Z] float32, the occupancy of each cell; negative: no camera sees it
    binaries: Tensor  # [L, X, Y, Z] bool, whether rays are marched through it
    grid_coords: Tensor  # [X * Y * Z, 3] int64, not saved, like those below
    grid_indices: Tensor  # [X * Y * Z] int64
    _mean: Tensor  # [] float32, of the visible cells' occs in the last update
    _zero: Tensor  # [] float32

    @names_types
    def __init__(
        self,
        roi_aabb: Sequence[float] | Tensor,
        resolution: int | Sequence[int] | Tensor = 128,
        levels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise BadArgument(f"expected roi_aabb, resolution and levels (as since NerfAcc 0.4), got {', '.join(kwargs)}")
        if isinstance(resolution, int):
            resolution = [resolution] * self.DIM
        cells = resolution if isinstance(resolution, Tensor) else torch.tensor(resolution, dtype=torch.int32)
        box = torch.as_tensor(roi_aabb)
        if box.is_complex():
            raise BadArgument(f"roi_aabb: expected real numbers, got {box.dtype}")
        box = box.float()
        if cells.shape != (self.DIM,) or int(cells.min()) < 1:
            raise BadArgument(f"resolution: expected one or three numbers >= 1, got {resolution}")
        if box.shape != (2 * self.DIM,):
            raise BadArgument(f"roi_aabb: expected six numbers, got {roi_aabb}")
        if levels < 1 or levels * int(cells.long().prod()) >= 2**31:
            raise BadArgument(f"levels: expected >= 1, and fewer than 2**31 cells in all, got {levels} of {cells.tolist()}")
        self.cells_per_lvl = int(cells.long().prod())
        self.levels = levels
        shape = [int(n) for n in cells]
        coords = torch.cartesian_prod(*(torch.arange(n) for n in shape))
        self.register_buffer("resolution", cells)
        self.register_buffer("aabbs", torch.stack([_enlarge_aabb(box, 2**level) for level in range(levels)]))
        self.register_buffer("occs", torch.zeros(levels * self.cells_per_lvl))
        self.register_buffer("binaries", torch.zeros([levels, *shape], dtype=torch.bool))
        self.register_buffer("grid_coords", coords, persistent=False)
        self.register_buffer("grid_indices", torch.arange(self.cells_per_lvl), persistent=False)
        self.register_buffer("_mean", torch.zeros(()), persistent=False)
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @names_types
    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: SampleFn | None = None,
        alpha_fn: SampleFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        t_min: Tensor | None = None,
        t_max: Tensor | None = None,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The steps of R rays whose midpoints are in occupied cells; given a function, those of them that can be seen.

        Args:
            rays_o: [R, 3] float32 origins. A ray with NaN or inf in it has no samples.
            rays_d: [R, 3] float32 directions, of any length.
            sigma_fn: densities [N] of N samples, called with t_starts [N], t_ends [N] and ray_indices [N] int64 (not
                called for N = 0, nor where both thresholds are 0). Samples with less than ``early_stop_eps`` of the light
                left are dropped, and those of opacity below ``alpha_thre``, or the mean of ``occs`` where that is lower.
            alpha_fn: opacities [N] in its place.
            near_plane, far_plane: limits of t.
            t_min, t_max: [R] float32, further limits.
            render_step_size, cone_angle: steps have the length ``max(render_step_size, cone_angle * t)``; a
                ``render_step_size`` of 0 or less stands for one interval per occupied cell, see
                :func:`~lightning_nerf.nerfacc.grid.traverse_grids`.
            early_stop_eps, alpha_thre: see ``sigma_fn``.
            stratified: begin each ray a random part of a step later.

        Returns:
            ``(ray_indices [N] int64, t_starts [N], t_ends [N])``, in the order of rays and t. Not differentiable.
        """
        check_tensor("rays_o", rays_o, ("R", 3), torch.float32)
        n_rays = rays_o.shape[0]
        check_tensor("rays_d", rays_d, (n_rays, 3), torch.float32)
        for name, limit in (("t_min", t_min), ("t_max", t_max)):
            if limit is not None:
                check_tensor(name, limit, (n_rays,), torch.float32)
        check_same_device(rays_o=rays_o, rays_d=rays_d, t_min=t_min, t_max=t_max, binaries=self.binaries)
        near = rays_o.new_full((n_rays,), near_plane) if t_min is None else t_min.clamp(min=near_plane)
        far = rays_o.new_full((n_rays,), far_plane) if t_max is None else t_max.clamp(max=far_plane)
        jitter = torch.rand_like(near) if stratified else None
        samples = sample(Rays(rays_o, rays_d, near, far), self.binaries, self.aabbs, render_step_size, cone_angle, jitter)
        thins = alpha_thre > 0 or early_stop_eps > 0
        if thins and len(samples.t_starts) > 0 and (sigma_fn is not None or alpha_fn is not None):
            samples = self._visible(samples, sigma_fn, alpha_fn, max(early_stop_eps, 0.0), alpha_thre)
        return samples.ray_indices.long(), samples.t_starts, samples.t_ends

    def _visible(
        self,
        samples: PackedSamples,
        sigma_fn: SampleFn | None,
        alpha_fn: SampleFn | None,
        early_stop_eps: float,
        alpha_thre: float,
    ) -> PackedSamples:
        threshold = self.occs.mean().clamp(max=alpha_thre) if alpha_thre > 0 else self._zero
        arguments = (samples.t_starts, samples.t_ends, samples.ray_indices.long())
        if sigma_fn is not None:
            densities = _per_sample("sigma_fn", sigma_fn(*arguments), samples)
            return prune(densities, samples, early_stop_eps=early_stop_eps, alpha_thre=threshold)
        assert alpha_fn is not None
        # Opacities are densities in steps of length 1. Their logarithm is rounded: what equals the threshold must stay.
        alphas = _per_sample("alpha_fn", alpha_fn(*arguments), samples).clamp(max=1)
        unit = samples._replace(t_starts=torch.zeros_like(alphas), t_ends=torch.ones_like(alphas))
        thinner = threshold * (1 - 2**-21)
        visible, sources = prune_from(-torch.log1p(-alphas), unit, early_stop_eps=early_stop_eps, alpha_thre=thinner)
        return visible._replace(t_starts=samples.t_starts[sources], t_ends=samples.t_ends[sources])

    @names_types
    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: PointFn,
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Learn from the field in each n-th step; to be called in each training step.

        Args:
            step: the training step.
            occ_eval_fn: occupancies [M] or [M, 1] >= 0 of points [M, 3] in world units: density times step size, or
                opacity. Called once per level. A cell whose value is not finite stays as it was.
            occ_thre: a cell is occupied from this value on, or from the mean of the visible cells where that is lower.
            ema_decay: factor of an evaluated cell's old value, in [0, 1]; the new one is its maximum with the found.
            warmup_steps: all cells are evaluated in steps below this. Later a random quarter of them and the occupied ones,
                each at least once where they are no more than a quarter of all, else a random quarter's number of draws.
            n: steps from one update to the next.

        Raises:
            RuntimeError: in evaluation mode.
        """
        if not self.training:
            raise RuntimeError("update_every_n_steps: expected training mode, the estimator is in evaluation mode")
        if n < 1:
            raise BadArgument(f"n: expected >= 1, got {n}")
        if step % n == 0:
            self._update(step, occ_eval_fn, occ_thre, ema_decay, warmup_steps)

    @torch.no_grad()
    def _update(
        self,
        step: int,
        occ_eval_fn: PointFn,
        occ_thre: float = 0.01,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
    ) -> None:
        """Evaluate cells and renew ``occs`` and ``binaries`` in place; see :meth:`update_every_n_steps`."""
        shape, n = self.binaries.shape[1:], self.cells_per_lvl
        keys = torch.empty((self.levels, 3), dtype=torch.int64, device=self.occs.device).random_()
        if step < warmup_steps:
            cells = torch.arange(self.levels * n, dtype=torch.int32, device=self.occs.device)
        else:
            quarter = max(1, n // 4)
            cells = occupancy_cover(keys[0], self.binaries, quarter, quarter)
        values = []
        for level, chosen in enumerate(cells.chunk(self.levels)):
            in_level = chosen - level * n if level > 0 else chosen
            points = cell_points(keys[level], in_level, self.aabbs[level].view(2, 3), shape)
            found = occ_eval_fn(points)
            check_returned("occ_eval_fn", found, (len(points),), (len(points), 1), device=points.device)
            values.append(found.flatten().float())
        found = values[0] if len(values) == 1 else torch.cat(values)
        # Less than nothing is nothing: the cell decays. Of -inf this makes NaN, so that its cell stays.
        newest = occupancy_newest(cells, found * (found > 0), self.occs.numel())
        occupancy_update_(self.occs, self.binaries, self._mean, newest, decay=ema_decay, threshold=occ_thre)

    @names_types
    @torch.no_grad()
    def mark_invisible_cells(
        self,
        K: Tensor,  # noqa: N803
        c2w: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.0,
        chunk: int = 32**3,
    ) -> None:
        """Take cells that no camera sees out of the grid, for good; to be called once, before training. In place.

        A cell stays if a point of it (its place among the cells of an axis, first to last, from face to face of the box) is
        in some camera's image at a depth of ``near_plane`` or more, and in no camera's at less.

        Args:
            K: [V, 3, 3] or [1, 3, 3], intrinsics in pixels.
            c2w: [V, 3, 4] or [V, 4, 4], camera to world; the camera looks along its +z, y points down.
            width, height: of the images, in pixels.
            near_plane: depth that rays begin at.
            chunk: cells looked at together, for memory: O(chunk V).
        """
        if c2w.ndim != 3 or c2w.shape[1:] not in ((3, 4), (4, 4)):
            raise BadArgument(f"c2w: expected shape [V, 3, 4] or [V, 4, 4], got {list(c2w.shape)}")
        views = c2w.shape[0]
        if K.ndim != 3 or K.shape[1:] != (3, 3) or K.shape[0] not in (1, views):
            raise BadArgument(f"K: expected shape [1, 3, 3] or [{views}, 3, 3], got {list(K.shape)}")
        check_same_device(K=K, c2w=c2w, occs=self.occs)
        for name, value in (("K", K), ("c2w", c2w)):
            if value.is_complex():
                raise BadArgument(f"{name}: expected real numbers, got {value.dtype}")
        if chunk < 1:
            raise BadArgument(f"chunk: expected >= 1, got {chunk}")
        rotation, position = c2w[:, :3, :3].double(), c2w[:, None, :3, 3].double()
        for level, box in enumerate(self.aabbs.double()):
            occs = self.occs[level * self.cells_per_lvl : (level + 1) * self.cells_per_lvl]
            for begin in range(0, self.cells_per_lvl, chunk):
                place = self.grid_coords[begin : begin + chunk] / (self.resolution - 1).clamp(min=1)
                points = box[:3] + place.double() * (box[3:] - box[:3])
                x, y, depth = ((points - position) @ rotation @ K.double().mT).unbind(-1)  # [V, chunk]
                u, v = x / depth, y / depth
                in_image = (depth >= 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
                seen = (in_image & (depth >= near_plane)).any(0) & ~(in_image & (depth < near_plane)).any(0)
                part = occs[begin : begin + chunk]
                part.copy_(torch.where(part < 0, part, torch.where(seen, 0.0, -1.0)))

    @torch.no_grad()
    def _get_all_cells(self) -> list[Tensor]:
        """Per level, the indices within it of the cells that some camera sees, int64."""
        return [self.grid_indices[seen] for seen in (self.occs >= 0).view(self.levels, -1)]

    @torch.no_grad()
    def _sample_uniform_and_occupied_cells(self, n: int) -> list[Tensor]:
        """Per level, the indices within it of n cells among all and n among the occupied ones, [2 n] int64."""
        key = torch.empty(3, dtype=torch.int64, device=self.occs.device).random_()
        levels = occupancy_cover(key, self.binaries, n, n).long().view(self.levels, -1)
        return list(levels - self.cells_per_lvl * torch.arange(self.levels, device=levels.device)[:, None])


def _per_sample(name: str, values: Tensor, samples: PackedSamples) -> Tensor:
    check_returned(name, values, tuple(samples.t_starts.shape), device=samples.t_starts.device)
    return values.float()
