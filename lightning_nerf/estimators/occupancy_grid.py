"""The occupancy grid: rays skip what was found empty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.capabilities import states
from lightning_nerf.checks import BadArgument, check_integer, check_number
from lightning_nerf.estimators.base import corners
from lightning_nerf.estimators.occupancy_cells import OccupancyCells
from lightning_nerf.estimators.query import DensityFn, densities
from lightning_nerf.estimators.subdivided import subdivided
from lightning_nerf.ops import occupancy
from lightning_nerf.ops.march import march
from lightning_nerf.ops.random import STREAM_CELL_TIMES, STREAM_JITTER, key_from_torch, random_uniform
from lightning_nerf.ops.visibility import prune_by
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import PackedSamples, Placement, Pruning, Query, Rays

_SMALLEST_STEP = 2.0**-149  # that float32 holds
MAX_STEPS_PER_QUERY = 64  # a limit that catches typos
EVALUATION_CHUNK = 2**20  # cells that update() hands to the density function at once


class OccupancyGrid(OccupancyCells):
    """Marches rays through the occupied cells of nested grids, whose state follows the field during training.

    A cell's value is the running maximum of its opacity, density times step size: each update multiplies the values of the
    cells it evaluates by ``decay`` and takes the larger of that and the new value. A cell is occupied if its value reaches
    ``threshold``, or the mean of all cells where that is lower. Before the first update every cell counts as occupied: that
    space is empty has to be found out.

    A scene that changes with time has one grid for all times (``n_times=1``): a cell is occupied if it is at any time. Or
    it has a grid for each of ``n_times`` bins of equal width between the first and the last time of the data. Then
    ``rays.times`` must be given. A ray reads the bin that holds its time, or the nearest. An update evaluates one bin, as
    many cells as of one grid, at random times from half a bin before it to half a bin after it. ``n_times`` updates visit
    all bins; before its first visit a bin holds the union of the last eight visited ones.

    In :meth:`sample`, given capacities, and :meth:`update` nothing on CUDA synchronizes with the host. All buffers are only
    ever written in place, and all are saved. Without Lightning::

        grid = OccupancyGrid(resolution=128).bind([-1, -1, -1, 1, 1, 1]).to(device)
        for step in range(steps):
            if step % 16 == 0:
                grid.update(density_fn, step=step)
            ray_indices, t_starts, t_ends = grid.sampling(rays_o, rays_d, sigma_fn, stratified=True)
            colors, opacities, depths, extras = rendering(t_starts, t_ends, ray_indices, len(rays_o), rgb_sigma_fn)

    >>> import torch
    >>> from lightning_nerf import OccupancyGrid
    >>> grid = OccupancyGrid(resolution=8, step_size=0.1, warmup_steps=1).bind([-1, -1, -1, 1, 1, 1])
    >>> grid.update(lambda positions: 50.0 * (positions[:, 0] > 0), step=0)
    >>> float(grid.occupied_share())
    0.5
    >>> grid = OccupancyGrid(resolution=8, n_times=4, step_size=0.1).bind([-1, -1, -1, 1, 1, 1])
    >>> for step in range(4):  # something shrinks toward x = 1
    ...     grid.update(lambda positions, times: 50.0 * (positions[:, 0] > times), step=step, times=(-1.0, 1.0))
    >>> int(grid.occupied_shares().argmax())
    0

    Args:
        resolution: cells per axis and level, >= 1.
        n_levels: nested boxes, 1 to 8, each twice as large as the one before; the first is the scene box.
        decay: of a cell's value per evaluation, in [0, 1]. For one grid of a scene that changes with time 0.99 is good, as
            few evaluations fall at the time when a cell is occupied; for bins 0.8, as a bin has one update in ``n_times``.
        threshold: opacity of one step from which on a cell is occupied, >= 0.
        warmup_steps: :meth:`update` evaluates all cells in training steps below this, and in the first visit of a bin;
            later, per level, a quarter of the cells at random and as many draws among the occupied ones. Of bins, those
            occupied in a neighboring bin and the cells around count with them.
        step_size: between samples, in world units for directions of length 1, > 0. None: the scene box's diagonal / 1024.
        cone_angle: samples lie ``max(step_size, cone_angle * t)`` apart, >= 0.
        alpha_threshold: samples of lower opacity are pruned, in [0, 1). Half the grid's mean value takes its place where
            that is lower, so that a young field keeps its samples.
        early_stop_eps: samples behind which less light than this remains are pruned, in [0, 1).
        steps_per_query: :meth:`place` asks for one density for so many steps of a ray, >= 1, and cuts what survives into
            single steps. For fields whose densities cost more than the samples that they spare; 2 halves that cost.
            ``alpha_threshold`` stays that of a single step: s steps are pruned where their opacity is below
            ``1 - (1 - alpha_threshold)^s``. Renderers of frames prune single steps.
        n_times: bins in time, >= 1. A cell takes 5 bytes with one, 3 per bin with several: 64 bins of 128^3 cells take
            403 MB, and 34 MB more while rays are marched and the grid is updated.

    Source: Müller, Evans, Schied, Keller, "Instant neural graphics primitives with a multiresolution hash encoding",
    SIGGRAPH 2022, appendix C; the choice of thresholds follows Li, Tancik, Kanazawa, "NerfAcc", ICCV 2023.
    """

    needs_update = True

    def __init__(
        self,
        resolution: int = 128,
        n_levels: int = 1,
        decay: float = 0.95,
        threshold: float = 0.01,
        warmup_steps: int = 256,
        step_size: float | None = None,
        cone_angle: float = 0.0,
        alpha_threshold: float = 0.01,
        early_stop_eps: float = 1e-4,
        steps_per_query: int = 1,
        n_times: int = 1,
    ) -> None:
        super().__init__(resolution, n_levels, n_times)
        check_number("decay", decay, "[0, 1]")
        check_number("threshold", threshold, "[0, inf)")
        check_integer("warmup_steps", warmup_steps, 0)
        if step_size is not None:
            check_number("step_size", step_size, "(0, inf)")
        check_number("cone_angle", cone_angle, "[0, inf)")
        check_number("alpha_threshold", alpha_threshold, "[0, 1)")
        check_number("early_stop_eps", early_stop_eps, "[0, 1)")
        check_integer("steps_per_query", steps_per_query, 1, MAX_STEPS_PER_QUERY)
        self.decay = decay
        self.threshold = threshold
        self.warmup_steps = warmup_steps
        self.step_size = step_size
        self.cone_angle = cone_angle
        self.alpha_threshold = alpha_threshold
        self.early_stop_eps = early_stop_eps
        self.steps_per_query = steps_per_query

    @typed_errors
    @torch.no_grad()
    def bind(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> OccupancyGrid:
        """Lay the first level over the scene box. Binding the same box again changes nothing; another starts afresh."""
        self.lay_over(corners(scene_box))
        return self

    @property
    def render_step_size(self) -> float:
        """Distance between samples, in world units. An error while no scene is bound."""
        if self._diagonal is None:
            raise RuntimeError(f"{type(self).__name__} is not bound to a scene: call bind(scene_box) first")
        return max(self._diagonal / 1024, _SMALLEST_STEP) if self.step_size is None else self.step_size

    @states("prunes")
    @torch.no_grad()
    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        """March through occupied cells; given ``query``, drop samples that are transparent or hidden.

        See :meth:`Estimator.place`. Without ``query`` the march fills ``capacity`` (or else ``march_capacity``).
        """
        if query is None and capacity is not None:
            march_capacity = capacity
        if query is None:
            return Placement(self.candidates(rays, key=key, capacity=march_capacity))
        steps = self.steps_per_query
        samples = self.candidates(
            rays,
            key=key,
            step_size=steps * self.render_step_size,
            cone_angle=steps * self.cone_angle,
            capacity=march_capacity,
        )
        pruning = self.thresholds()
        if steps == 1:
            return prune_by(query, rays, samples, pruning, capacity)
        # A single step's threshold, as frames have it, would keep fog in training that frames do not show.
        pruning = pruning._replace(alpha_thre=-torch.expm1(steps * torch.log1p(-pruning.alpha_thre)))
        placement = prune_by(query, rays, samples, pruning, None if capacity is None else capacity // steps)
        return Placement(subdivided(placement.samples, steps, capacity))  # features of the whole are none of its parts'

    @torch.no_grad()
    def candidates(
        self,
        rays: Rays,
        *,
        key: Tensor | None = None,
        step_size: float | None = None,
        cone_angle: float | None = None,
        capacity: int | None = None,
    ) -> PackedSamples:
        """The march through occupied cells; ``step_size`` and ``cone_angle`` in place of the grid's, if given."""
        occupancy, bins = self.binaries, None
        if self.bins is not None:
            occupancy, bins = self.bins.of_rays(self.binaries, rays.times, len(rays.origins))
        return march(
            rays,
            occupancy,
            self.aabb,
            step_size=self.render_step_size if step_size is None else step_size,
            cone_angle=self.cone_angle if cone_angle is None else cone_angle,
            jitter=None if key is None else random_uniform(key, STREAM_JITTER, rays.origins.shape[0], 1)[:, 0],
            capacity=capacity,
            bins=bins,
        )

    def thresholds(self) -> Pruning:
        """See :meth:`Estimator.thresholds`: ``early_stop_eps``, and ``alpha_threshold`` of single steps, or less."""
        return Pruning(self.early_stop_eps, self.least_opacity(self.alpha_threshold))

    def least_opacity(self, alpha_threshold: float) -> Tensor:
        """``alpha_threshold``, or half the grid's mean value, of all bins, where that is lower."""
        # Half: the opacity 1 - exp(-x) of a step lies a little below its value x, and a field of constant density, as
        # fields are when they start, must not lose every sample for that.
        mean = self.mean if self.bins is None else self.mean.mean()
        return self._zero if alpha_threshold == 0 else (mean * 0.5).clamp(max=alpha_threshold)

    @states("captured", "shared")
    @typed_errors
    @torch.no_grad()
    def update(
        self,
        density_fn: DensityFn,
        *,
        step: int,
        key: Tensor | None = None,
        times: tuple[float, float] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Evaluate ``density_fn(positions [M, 3])`` in cells chosen by ``step`` and ``key``, and renew the grid in place.

        A cell whose new value is negative or not finite stays as it was; so do cells that no camera sees.

        Args:
            density_fn: densities [M] of positions, and of times [M] where ``times`` are given.
            step: of training.
            key: see :meth:`cells`; default drawn from torch's generator.
            times: the first and the last time of the data: each cell is evaluated at a random time between them, so that in
                the course of the updates a cell is occupied if it is at any time. With bins it must be given, cells are
                evaluated at times near the bin that is due, and another range than before starts the grid afresh.
            share: ``(i, n)``: evaluate the i-th of n equal parts of the cells. The n processes of ``torch.distributed``
                that train one field each take a part, with one key for all, and :meth:`combine` what they find.
        """
        part, parts = share
        if not 0 <= part < parts:
            raise BadArgument(f"share: expected (i, n) with 0 <= i < n, got {share}")
        step_size = self.render_step_size
        key = key_from_torch(self.occs.device) if key is None else key
        state, times = self.due(times)
        cells = self.cells(step, key)
        points = [occupancy.cell_points(key, cells, self.aabb, self.binaries.shape[-3:])]  # of all: point i is draw i
        if times is not None:
            first, last = times  # numbers: a copy to the device is not for a CUDA graph
            points.append(first + (last - first) * random_uniform(key, STREAM_CELL_TIMES, len(cells), 1)[:, 0])
        if parts > 1:
            cells, *points = (values.tensor_split(parts)[part] for values in (cells, *points))
        chunks = [densities(density_fn, *chunk) for chunk in zip(*(p.split(EVALUATION_CHUNK) for p in points), strict=True)]
        found = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        newest = occupancy.occupancy_newest(cells, found * step_size, state.occs.numel())
        newest = self.combine(newest) if parts > 1 else newest
        self.renew(state, newest, self.decay, self.threshold)

    @states("captured")
    def cells(self, step: int, key: Tensor) -> Tensor:
        """Which cells [M] int32 to evaluate in ``step``: all during warm-up, then a quarter and a quarter per level."""
        binaries, is_known = self.binaries, True
        if self.bins is not None:
            binaries, is_known = self.bins.around(self.binaries), self.bins.is_complete
        if step < self.warmup_steps or not is_known:
            return torch.arange(binaries.numel(), dtype=torch.int32, device=binaries.device)
        quarter = max(1, binaries[0].numel() // 4)
        return occupancy.occupancy_select(key, binaries, quarter, quarter)

    def combine(self, newest: Tensor) -> Tensor:
        """The maximum over all processes of the newest values [L * X * Y * Z] in their shares; -1: in no share."""
        torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX)
        return newest

    def mark_invisible_cells(
        self,
        c2w: Tensor,
        intrinsics: Tensor,
        width: int | Tensor,
        height: int | Tensor,
        near: float | Tensor = 0.0,
    ) -> None:
        """Close the cells that none of V cameras sees, for good; see the op of this name in ``ops.occupancy``.

        Args:
            c2w: [V, 3, 4], columns right, up, backwards, position.
            intrinsics: [4] or [V, 4], fx, fy, cx, cy in pixels.
            width, height: of the images, in pixels; numbers or [V].
            near: distance from the camera, in world units, that rays begin at; a number or [V].
        """
        _ = self.render_step_size  # bound?
        occs, visible, _ = self.blank()
        occupancy.mark_invisible_cells(occs, visible, self.aabb, c2w, intrinsics, width, height, near)
        self.close(visible)
