"""The interface of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.arguments import Recorded
from lightning_nerf.capabilities import has
from lightning_nerf.checks import FLOATS, BadArgument, check_returned, check_same_device, check_tensor
from lightning_nerf.estimators.query import DensityFn, as_query
from lightning_nerf.ops.composite import composite_alphas
from lightning_nerf.ops.random import key_from_torch
from lightning_nerf.ops.visibility import prune
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Densities, PackedSamples, Placement, Pruning, Query, Rays

SampleFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``fn(t_starts [N], t_ends [N], ray_indices [N] int64)`` gives densities or opacities [N]."""


class Estimator(Recorded, nn.Module, ABC):
    """Decides where along its rays a field is evaluated.

    An estimator never sees a field, only a :class:`~lightning_nerf.types.Query` for densities of samples. A subclass
    implements :meth:`bind` and :meth:`place`. Modules call :meth:`place`; a plain PyTorch loop may find :meth:`sampling`
    handier.

    >>> import torch
    >>> from lightning_nerf import OccupancyGrid
    >>> grid = OccupancyGrid(resolution=8, step_size=0.5).bind([-1, -1, -1, 1, 1, 1])
    >>> o, d = torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]])
    >>> grid.sampling(o, d)[1]  # where samples begin
    tensor([1.0000, 1.5000, 2.0000, 2.5000])
    """

    needs_update: bool = False
    """Whether :meth:`update` must be called during training."""

    fixed_count: int | None = None
    """Samples that :meth:`place` puts on each active ray, where their number is fixed, or at most that many where it drops
    some of them; the number of rays of a step then is fixed too. None: the number varies."""

    n_rounds: int = 0
    """Earlier rounds of samples that :meth:`place` makes, each with weights of its own."""

    n_levels: int = 1
    """Nested boxes that :meth:`place` looks into, each twice as large as the one before, the first being the scene's."""

    @property
    def variant(self) -> Hashable:
        """Which of a few kinds of :meth:`place` the present step takes: those of one kind do the same, in Python too. An
        executor records each kind once."""
        return None

    def begin_step(self, update: int) -> None:
        """Learn which update of training is next, from 0, before :meth:`place`: for schedules in Python."""

    @abstractmethod
    def bind(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Estimator:
        """Learn where the scene is; called before training. Saved buffers are written in place. Returns the estimator.

        Args:
            scene_box: or its corners alone, [2, 3] or six numbers, minimum first.
        """

    @abstractmethod
    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        """Place samples on R rays. No gradient flows through where they are; weights of earlier rounds have gradients.

        Args:
            rays: where; inactive rays get no samples.
            query: densities, which decide which samples are worth evaluating again, or where finer ones go; None: all
                samples that are placed without asking for densities.
            key: [3] int64 [seed, rank, step]: samples are jittered by a function of it; None: no jitter.
            capacity: length of the returned samples; the true count stays on the device, whole rays that do not fit are
                dropped (``kept``). None: the exact count, read by the host.
            march_capacity: the same for the samples of earlier rounds, or before ``query`` decides.
        """

    def sample(
        self,
        rays: Rays,
        density_fn: DensityFn | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> PackedSamples:
        """:meth:`place` with a function of positions (and times) in place of a query; the samples alone."""
        query = None if density_fn is None else as_query(density_fn)
        return self.place(rays, query, key=key, capacity=capacity, march_capacity=march_capacity).samples

    def candidates(
        self, rays: Rays, *, key: Tensor | None = None, step_size: float | None = None, cone_angle: float | None = None
    ) -> PackedSamples:
        """Samples placed without asking for densities; :meth:`sampling` chooses from them.

        ``step_size``, ``cone_angle``: None: the estimator's own.

        Raises:
            ValueError: the estimator has no such setting.
        """
        for name, value in [("render_step_size", step_size), ("cone_angle", cone_angle)]:
            if value is not None:
                raise BadArgument(f"{name}: {type(self).__name__} has no such setting, expected None, got {value}")
        return self.place(rays, key=key).samples

    @typed_errors
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
        render_step_size: float | None = None,
        early_stop_eps: float | None = None,
        alpha_thre: float | None = None,
        stratified: bool = False,
        cone_angle: float | None = None,
        times: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Place samples on R rays and drop those that are transparent or hidden; plain tensors in and out, no gradient.

        An estimator that places by densities, as :class:`Hierarchical`, gives what :meth:`place` gives by those of
        ``sigma_fn``, its own thresholds applied; ``early_stop_eps`` and ``alpha_thre`` then drop more.

        Args:
            rays_o: [R, 3], origins.
            rays_d: [R, 3], directions; t is in units of their length.
            sigma_fn: ``sigma_fn(t_starts [N], t_ends [N], ray_indices [N])`` gives the densities that decide. Not called
                where there are no samples, or where nothing can be dropped.
            alpha_fn: in its place, gives opacities. Refused where the estimator asks for densities.
            near_plane, far_plane: interval of t for all rays.
            t_min, t_max: [R], further limits of each ray.
            render_step_size: between samples. None, here and below: the estimator's own setting.
            early_stop_eps: samples in front of which less light than this is left are dropped.
            alpha_thre: samples of lower opacity are dropped, see :meth:`least_opacity`.
            stratified: shift each ray's samples by a share of a step, drawn from torch's generator of the rays' device.
            cone_angle: growth of the step with t.
            times: [R], when the rays see the scene, for an :class:`OccupancyGrid` with bins in time.

        Returns:
            ``(ray_indices [N] int64, t_starts [N], t_ends [N])``, rays and t rising. Their number is read by the host.
        """
        rays = _rays(rays_o, rays_d, near_plane, far_plane, t_min, t_max, times)
        if sigma_fn is not None and alpha_fn is not None:
            raise BadArgument("sigma_fn, alpha_fn: expected at most one of them")
        key = key_from_torch(rays.origins.device) if stratified else None
        name, function = ("sigma_fn", sigma_fn) if alpha_fn is None else ("alpha_fn", alpha_fn)
        if function is None or has(self.place, "prunes") or render_step_size is not None or cone_angle is not None:
            samples = self.candidates(rays, key=key, step_size=render_step_size, cone_angle=cone_angle)
        else:
            samples, is_chosen = self._chosen(rays, key, sigma_fn)
            if is_chosen:  # by the estimator's thresholds; only the caller's are left
                early_stop_eps, alpha_thre = early_stop_eps or 0.0, alpha_thre or 0.0
        found = samples.ray_indices.long(), samples.t_starts, samples.t_ends
        if function is None or len(found[0]) == 0 or (early_stop_eps == 0 and alpha_thre == 0):
            return found
        eps, threshold = self.thresholds() or Pruning(
            1e-4, torch.zeros((), dtype=torch.float32, device=rays.origins.device)
        )
        eps = eps if early_stop_eps is None else early_stop_eps
        threshold = threshold if alpha_thre is None else self.least_opacity(alpha_thre)
        values = _values(name, function, samples)
        if alpha_fn is None:
            pruned = prune(values, samples, early_stop_eps=eps, alpha_thre=threshold)
            return pruned.ray_indices.long(), pruned.t_starts, pruned.t_ends
        nothing = values.new_empty(len(values), 0)
        trans = composite_alphas(values, nothing, None, None, samples.offsets, ts=samples.t_starts, return_trans=True).trans
        assert trans is not None
        index = ((trans >= eps) & (values >= threshold)).nonzero()[:, 0]
        return found[0][index], found[1][index], found[2][index]

    def _chosen(self, rays: Rays, key: Tensor | None, sigma_fn: SampleFn | None) -> tuple[PackedSamples, bool]:
        """The samples of :meth:`place` by densities of ``sigma_fn``, and whether densities had a part in them."""
        is_asked = False

        def query(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
            nonlocal is_asked
            is_asked = True
            if sigma_fn is None:
                raise BadArgument(f"alpha_fn: {type(self).__name__} asks for densities, expected sigma_fn in its place")
            return Densities(_values("sigma_fn", sigma_fn, samples) if len(samples.t_starts) else samples.t_starts)

        placement = self.place(rays, query, key=key)
        return placement.samples, is_asked or len(placement.rounds) > 0  # rounds may come from a field of its own

    def occupied_share(self) -> Tensor | None:
        """Share of space that is looked into, 0-d float32, on the estimator's device; None: it keeps no account."""
        return None

    def thresholds(self) -> Pruning | None:
        """Thresholds below which :meth:`place` drops samples; None: it chooses in another way."""
        return None

    @property
    def pruning(self) -> Pruning | None:
        """:meth:`thresholds`, if :meth:`place` states that with densities it does nothing but prune what it places without.

        A renderer of frames may then prune by itself. ``@states("prunes")`` states it.
        """
        return self.thresholds() if has(self.place, "prunes") else None

    def least_opacity(self, alpha_threshold: float) -> float | Tensor:
        """The opacity below which samples are dropped if this threshold is asked for: itself, or less for a young field."""
        return alpha_threshold

    def update(
        self, density_fn: DensityFn, *, step: int, key: Tensor | None = None, times: tuple[float, float] | None = None
    ) -> None:
        """Learn from the field as it is at training step ``step``; in place, no gradient.

        Args:
            density_fn: densities [M] of positions [M, 3], and of times [M] if ``times`` are given.
            step: of training.
            key: [3], that of :meth:`place`; None: one drawn from torch's generator of the estimator's device.
            times: the first and the last time of the data, for a field that wants times.
        """


def corners(scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """[2, 3] float32 of what :meth:`Estimator.bind` takes."""
    aabb = scene_box.aabb if isinstance(scene_box, SceneBox) else torch.as_tensor(scene_box)
    if aabb.shape not in ((2, 3), (6,)) or aabb.is_complex():
        raise BadArgument(f"scene_box: expected corners of shape [2, 3] or [6], got {aabb.dtype} of {list(aabb.shape)}")
    return aabb.detach().to(torch.float32).reshape(2, 3)


def _values(name: str, function: SampleFn, samples: PackedSamples) -> Tensor:
    """What the function gives for N samples, checked, as float32."""
    t_starts, t_ends, ray_indices = samples[:3]
    values = function(t_starts, t_ends, ray_indices.long())
    check_returned(name, values, tuple(t_starts.shape), device=t_starts.device)
    return values.float()


def _rays(
    rays_o: Tensor,
    rays_d: Tensor,
    near_plane: float,
    far_plane: float,
    t_min: Tensor | None,
    t_max: Tensor | None,
    times: Tensor | None,
) -> Rays:
    check_tensor("rays_o", rays_o, ("R", 3), FLOATS)
    n = rays_o.shape[0]
    check_tensor("rays_d", rays_d, (n, 3), FLOATS)
    for name, each in [("t_min", t_min), ("t_max", t_max), ("times", times)]:
        if each is not None:
            check_tensor(name, each, (n,), FLOATS)
    check_same_device(rays_o=rays_o, rays_d=rays_d, t_min=t_min, t_max=t_max, times=times)
    near = torch.full((n,), float(near_plane), dtype=torch.float32, device=rays_o.device)
    far = torch.full((n,), float(far_plane), dtype=torch.float32, device=rays_o.device)
    if t_min is not None:
        near = torch.maximum(near, t_min.float())
    if t_max is not None:
        far = torch.minimum(far, t_max.float())
    return Rays(
        rays_o.detach().float(), rays_d.detach().float(), near, far, None if times is None else times.detach().float()
    )
