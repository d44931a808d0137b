"""The occupancy grid: rays skip what was found empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_returned, check_same_device, check_tensor
from lightning_nerf.nerfacc._traverse import sample
from lightning_nerf.nerfacc._weights import as_number
from lightning_nerf.nerfacc.errors import argument_errors
from lightning_nerf.nerfacc.estimators._cameras import are_seen, check_cameras
from lightning_nerf.nerfacc.estimators._cells import is_replaceable, listed, replaceable
from lightning_nerf.nerfacc.estimators._limits import per_ray
from lightning_nerf.nerfacc.estimators._visible import SampleFn, visible_samples
from lightning_nerf.nerfacc.estimators.base import AbstractEstimator
from lightning_nerf.nerfacc.grid import _enlarge_aabb
from lightning_nerf.ops.memory import check_fits
from lightning_nerf.ops.occupancy import cell_points, occupancy_cover, occupancy_newest, occupancy_update_
from lightning_nerf.types import Rays

PointFn = Callable[[Tensor], Tensor]


class OccGridEstimator(AbstractEstimator):
    """Marches rays through the occupied cells of nested grids, which follow the field during training.

    Args:
        roi_aabb: [6] minimum and maximum corner of the first level, in world units; level l is 2^l times as large about
            its center.
        resolution: cells per axis, one number or three.
        levels: number of nested grids, >= 1.

    The estimator writes its buffers in place. On CUDA only :meth:`sampling` waits for the device, for the number of
    samples. ``state_dict`` has NerfAcc's keys, dtypes and shapes. Draws are torch's, so ``torch.manual_seed`` fixes them.
    Floating-point buffers stay float32 under ``.double()`` and ``.half()``.

    Raises:
        NerfAccArgument: an argument has a wrong shape or is out of range.

    Source: Müller et al., "Instant neural graphics primitives", SIGGRAPH 2022, appendix C; Li et al., "NerfAcc", ICCV 2023.

    >>> estimator = nerfacc.OccGridEstimator(roi_aabb=[-1, -1, -1, 1, 1, 1], resolution=8)
    >>> estimator.update_every_n_steps(0, occ_eval_fn=lambda x: (x[:, 0] > 0).float())  # a half of the box
    >>> rays_o, rays_d = torch.tensor([[-2.0, 0.01, 0.01]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> ray_indices, t_starts, t_ends = estimator.sampling(rays_o, rays_d, render_step_size=0.25)
    >>> t_starts
    tensor([2.0000, 2.2500, 2.5000, 2.7500])
    """

    DIM: int = 3
    DTYPES: ClassVar[dict[str, torch.dtype]] = {
        **dict.fromkeys(("aabbs", "occs", "_mean", "_zero"), torch.float32),
        "binaries": torch.bool,
    }

    resolution: Tensor  # [3] int32
    aabbs: Tensor  # [L, 6] float32
    occs: Tensor  # [L * X * Y * Z] float32, the occupancy of each cell; negative: no camera sees it
    binaries: Tensor  # [L, X, Y, Z] bool, whether rays are marched through it
    grid_coords: Tensor  # [X * Y * Z, 3] int64, not saved, like those below
    grid_indices: Tensor  # [X * Y * Z] int64
    _mean: Tensor  # [] float32, of the visible cells' occs in the last update
    _zero: Tensor  # [] float32

    @argument_errors
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
        box = roi_aabb if isinstance(roi_aabb, Tensor) else torch.as_tensor(roi_aabb, dtype=torch.float64)
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
        check_fits("resolution", self.cells_per_lvl, 32 + 5 * levels, torch.get_default_device(), what="cells")
        self.levels = levels
        shape = [int(n) for n in cells]
        coords = torch.cartesian_prod(*(torch.arange(n) for n in shape))
        self.register_buffer("resolution", cells)
        self.register_buffer("aabbs", torch.stack([_enlarge_aabb(box, 2**level) for level in range(levels)]))
        self.register_buffer("occs", torch.zeros(levels * self.cells_per_lvl, dtype=torch.float32))
        self.register_buffer("binaries", torch.zeros([levels, *shape], dtype=torch.bool))
        self.register_buffer("grid_coords", coords, persistent=False)
        self.register_buffer("grid_indices", torch.arange(self.cells_per_lvl), persistent=False)
        self.register_buffer("_mean", torch.zeros((), dtype=torch.float32), persistent=False)
        self.register_buffer("_zero", torch.zeros((), dtype=torch.float32), persistent=False)

    @argument_errors
    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: SampleFn | None = None,
        alpha_fn: SampleFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        t_min: Tensor | float | None = None,
        t_max: Tensor | float | None = None,
        render_step_size: float = 1e-3,
        early_stop_eps: float | Tensor = 1e-4,
        alpha_thre: float | Tensor = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the steps of R rays whose midpoints are in occupied cells; given a function, those that can be seen.

        Args:
            rays_o: [R, 3] float32 origins, in world units. A ray with NaN or inf in it has no samples.
            rays_d: [R, 3] float32 directions, of any length; t is in units of it.
            sigma_fn: densities [N] of N samples, called with t_starts [N], t_ends [N] and ray_indices [N] int64 (not
                called for N = 0, nor where both thresholds are 0). Samples with less than ``early_stop_eps`` of the light
                left are dropped, and those of opacity below ``alpha_thre``, or the mean of ``occs`` where that is lower.
            alpha_fn: opacities [N] in its place.
            near_plane, far_plane: limits of t.
            t_min, t_max: further limits, one for all rays or [R].
            render_step_size, cone_angle: steps have the length ``max(render_step_size, cone_angle * t)``; a
                ``render_step_size`` of 0 or less stands for one interval per occupied cell, see
                :func:`~lightning_nerf.nerfacc.grid.traverse_grids`.
            early_stop_eps, alpha_thre: see ``sigma_fn``; numbers or tensors of one element.
            stratified: begin each ray a random part of a step later.

        Returns:
            ``(ray_indices [N] int64, t_starts [N], t_ends [N])``, in the order of rays and t. Not differentiable.

        Raises:
            NerfAccArgument: an argument, or what a function returned, has a wrong shape, dtype or device.
        """
        check_tensor("rays_o", rays_o, ("R", 3), torch.float32)
        n_rays = rays_o.shape[0]
        check_tensor("rays_d", rays_d, (n_rays, 3), torch.float32)
        self._settle()
        t_min, t_max = per_ray("t_min", t_min, n_rays, rays_o), per_ray("t_max", t_max, n_rays, rays_o)
        check_same_device(rays_o=rays_o, rays_d=rays_d, t_min=t_min, t_max=t_max, binaries=self.binaries)
        near = rays_o.new_full((n_rays,), near_plane) if t_min is None else t_min.clamp(min=near_plane)
        far = rays_o.new_full((n_rays,), far_plane) if t_max is None else t_max.clamp(max=far_plane)
        jitter = torch.rand_like(near) if stratified else None
        samples = sample(Rays(rays_o, rays_d, near, far), self.binaries, self.aabbs, render_step_size, cone_angle, jitter)
        early_stop_eps = as_number("early_stop_eps", early_stop_eps)
        alpha_thre = as_number("alpha_thre", alpha_thre)
        thins = alpha_thre > 0 or early_stop_eps > 0
        if thins and len(samples.t_starts) > 0 and (sigma_fn is not None or alpha_fn is not None):
            threshold = self.occs.mean().clamp(max=alpha_thre) if alpha_thre > 0 else self._zero
            samples = visible_samples(samples, sigma_fn, alpha_fn, max(early_stop_eps, 0.0), threshold)
        return samples.ray_indices.long(), samples.t_starts, samples.t_ends

    @argument_errors
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
        """Learn from the field in each n-th step. Call it in each training step.

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
            NerfAccArgument: an argument, or what the function returned, has a wrong shape, dtype or device.
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
        """Evaluate cells and renew ``occs`` and ``binaries`` in place; see :meth:`update_every_n_steps`.

        Overrides of :meth:`_get_all_cells` and :meth:`_sample_uniform_and_occupied_cells` choose the cells.
        """
        self._settle()
        shape, n = self.binaries.shape[1:], self.cells_per_lvl
        keys = torch.empty((self.levels, 3), dtype=torch.int64, device=self.occs.device).random_()
        levels = self._chosen(step < warmup_steps, keys[0])
        cells, values = [], []
        for level, chosen in enumerate(levels):
            points = cell_points(keys[level], chosen, self.aabbs[level].view(2, 3), shape)
            found = occ_eval_fn(points)
            check_returned("occ_eval_fn", found, (len(points),), (len(points), 1), device=points.device)
            cells.append(chosen + level * n if level > 0 else chosen)
            values.append(found.flatten().float())
        found, cells = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (values, cells))
        # Less than nothing is nothing: the cell decays. Of -inf this makes NaN, so that its cell stays.
        newest = occupancy_newest(cells, found * (found > 0), self.occs.numel())
        occupancy_update_(self.occs, self.binaries, self._mean, newest, decay=ema_decay, threshold=occ_thre)

    @argument_errors
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
        """Take cells that no camera sees out of the grid, for good and in place. Call it once, before training.

        A cell stays if a point of it (its place among the cells of an axis, first to last, from face to face of the box) is
        in some camera's image at a depth of ``near_plane`` or more, and in no camera's at less.

        Args:
            K: [V, 3, 3] or [1, 3, 3], intrinsics in pixels.
            c2w: [V, 3, 4] or [V, 4, 4], camera to world; the camera looks along its +z, y points down.
            width, height: of the images, in pixels.
            near_plane: depth that rays begin at.
            chunk: cells looked at together, for memory: O(chunk V).

        Raises:
            NerfAccArgument: wrong shape, dtype or device.
        """
        check_cameras(K, c2w, self.occs)
        if chunk < 1:
            raise BadArgument(f"chunk: expected >= 1, got {chunk}")
        self._settle()
        levels = [self.grid_indices] * self.levels
        if not is_replaceable(self._get_all_cells):
            levels = self._listed("_get_all_cells", self._get_all_cells())
        for level, (box, chosen) in enumerate(zip(self.aabbs.double(), levels, strict=True)):
            occs = self.occs[level * self.cells_per_lvl : (level + 1) * self.cells_per_lvl]
            for cells in chosen.split(chunk):
                place = self.grid_coords[cells].double() / (self.resolution - 1).clamp(min=1)
                seen = are_seen(box[:3] + place * (box[3:] - box[:3]), K, c2w, width, height, near_plane)
                old = occs[cells]
                occs[cells] = torch.where(old < 0, old, torch.where(seen, old.new_zeros(()), -1.0))

    @replaceable
    @torch.no_grad()
    def _get_all_cells(self) -> list[Tensor]:
        """Per level, the indices within it of the cells that some camera sees, int64. Updates ask an override."""
        return [self.grid_indices[seen] for seen in (self.occs >= 0).reshape(self.levels, -1)]

    @replaceable
    @torch.no_grad()
    def _sample_uniform_and_occupied_cells(self, n: int) -> list[Tensor]:
        """Per level, the indices within it of up to n cells among all and n among the occupied, int64.

        None of a cell that no camera sees. Updates ask an override.
        """
        key = torch.empty(3, dtype=torch.int64, device=self.occs.device).random_()
        cells = occupancy_cover(key, self.binaries, n, n).long().view(self.levels, -1)
        seen = self.occs[cells] >= 0
        return [found[seen[level]] - level * self.cells_per_lvl for level, found in enumerate(cells)]

    def _chosen(self, is_warm_up: bool, key: Tensor) -> Sequence[Tensor]:
        """Per level, the indices within it of the cells to evaluate, int32. Values of unseen cells are left aside later."""
        n, quarter = self.cells_per_lvl, max(1, self.cells_per_lvl // 4)
        name = "_get_all_cells" if is_warm_up else "_sample_uniform_and_occupied_cells"
        if not is_replaceable(getattr(self, name)):
            levels = self._get_all_cells() if is_warm_up else self._sample_uniform_and_occupied_cells(quarter)
            return [cells.int() for cells in self._listed(name, levels)]
        if is_warm_up:
            return [self.grid_indices.int()] * self.levels
        cells = occupancy_cover(key, self.binaries, quarter, quarter)
        return [found - level * n if level > 0 else found for level, found in enumerate(cells.chunk(self.levels))]

    def _listed(self, name: str, levels: Sequence[Tensor]) -> list[Tensor]:
        return listed(name, levels, self.levels, self.cells_per_lvl, self.occs)
