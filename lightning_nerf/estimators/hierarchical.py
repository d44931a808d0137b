"""Coarse samples on each ray, and finer ones where the coarse ones find something."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadType, check_instance, check_integer, check_number
from lightning_nerf.estimators.stratified import Chosen, Spacing, StratifiedEstimator, packed, rays_that_fit, weights_of
from lightning_nerf.ops.importance import importance_sampling
from lightning_nerf.ops.random import STREAM_COARSE, STREAM_FINE, random_uniform
from lightning_nerf.ops.scan import segmented_sum
from lightning_nerf.ops.visibility import prune_found
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Densities, PackedSamples, Placement, Pruning, Query, Rays, Round, RoundField


class Hierarchical(StratifiedEstimator):
    """Coarse stratified samples, whose weights say where ``n_fine`` finer ones go; both are evaluated once more.

    On each active ray:

    1. ``n_coarse`` samples, one in each stratum between near and far, as :class:`Uniform` places them.
    2. Their densities, from ``query`` or from the coarse ``field``, give weights w_i, see
       :func:`~lightning_nerf.ops.composite.composite`.
    3. ``n_fine`` places from the inverse of the CDF of ``w_i + weight_floor``, which is linear within each coarse interval:
       one in each of ``n_fine`` strata of the CDF, with one jitter for each ray.
    4. The coarse edges and these places, sorted, are the edges of ``n_coarse + n_fine`` intervals.
    5. With a threshold above 0, the densities of these by ``query`` say which are transparent or hidden: those are dropped.

    The coarse samples are the placement's only :class:`~lightning_nerf.types.Round`. Its weights are differentiable in the
    field's parameters where gradients are enabled; where samples lie has no gradient. Train the coarse field with
    :class:`~lightning_nerf.RoundPhotometric`, or with a loss on the round's weights.

    Without query and without field, the coarse samples alone are placed. Given a capacity, rays whose samples do not fit in
    one of the rounds are dropped from both (``kept``), and nothing on CUDA synchronizes with the host.

    >>> import torch
    >>> from lightning_nerf import Hierarchical, Rays, as_query
    >>> estimator = Hierarchical(n_coarse=4, n_fine=3).bind([-1, -1, -1, 1, 1, 1])
    >>> rays = Rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.full((1,), 9.0))
    >>> wall = as_query(lambda positions: 1e3 * (positions[:, 2] > 0))  # begins at t = 2
    >>> placement = estimator.place(rays, wall)
    >>> placement.samples.t_starts
    tensor([1.0000, 1.5000, 2.0000, 2.0833, 2.2500, 2.4167, 2.5000])
    >>> placement.rounds[0].weights
    tensor([0., 0., 1., 0.])

    Args:
        n_coarse: samples of the first round on each active ray, >= 1.
        n_fine: samples that the second round adds, >= 1.
        field: evaluated in the first round in place of the module's field; a :class:`~lightning_nerf.RadianceField`, in
            recipes by ``class_path``. It is a part of the estimator, so the optimizer's group "estimator" trains it. None:
            one field for both rounds.
        spacing: of the coarse strata, "uniform", "disparity" or "power"; see :class:`Uniform` for this and the next.
        clip_to_box: cut each ray's interval at the scene's box, in a scene without contraction.
        weight_floor: added to each weight, so that every coarse interval may get fine samples, >= 0.
        alpha_threshold: samples of the last round that are of lower opacity are dropped, in [0, 1). In training a tenth of
            the mean opacity of all candidates takes its place where that is lower, so that a young field keeps its samples.
        early_stop_eps: so are samples behind which less light than this remains, in [0, 1). With both at 0, the default,
            all are kept, as in the paper. Otherwise a step asks the field for one density more for each sample, and
            spares color and gradient of what is dropped, which is most: then a wide field's step takes half the time.

    Raises:
        BadArgument: an argument, a capacity or near is out of range.
        RuntimeError: no scene is bound.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields for view synthesis", ECCV 2020,
    section 5.2.
    """

    n_rounds = 1

    field: RoundField | None

    def __init__(
        self,
        n_coarse: int = 64,
        n_fine: int = 128,
        field: RoundField | None = None,
        spacing: Spacing = "uniform",
        clip_to_box: bool = True,
        weight_floor: float = 1e-5,
        alpha_threshold: float = 0.0,
        early_stop_eps: float = 0.0,
    ) -> None:
        super().__init__(spacing, clip_to_box)
        check_integer("n_coarse", n_coarse, 1, 2**20)
        check_integer("n_fine", n_fine, 1, 2**20)
        check_number("weight_floor", weight_floor, "[0, inf)")
        check_number("alpha_threshold", alpha_threshold, "[0, 1)")
        check_number("early_stop_eps", early_stop_eps, "[0, 1)")
        if field is not None and not (isinstance(field, nn.Module) and isinstance(field, RoundField)):
            raise BadType(f"field: expected a RadianceField or None, got {type(field).__name__}")
        self.n_coarse = n_coarse
        self.n_fine = n_fine
        self.fixed_count = n_coarse + n_fine
        self.weight_floor = weight_floor
        self.alpha_threshold = alpha_threshold
        self.early_stop_eps = early_stop_eps
        self.field = field

    def bind(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Hierarchical:
        """See :meth:`Estimator.bind`; binds the coarse field too."""
        super().bind(scene_box)
        if self.field is not None:
            self.field.bind(self.box_for_fields(scene_box))
        return self

    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        """See :meth:`Estimator.place`; ``march_capacity`` bounds the coarse samples.

        The round holds the coarse field's colors (``output``) where gradients are enabled or a key is given; for frames its
        densities suffice.
        """
        only_coarse = query is None and self.field is None
        chosen = self.choose(rays, self._most(capacity, march_capacity, only_coarse), exact=capacity is None)
        edges = self.strata(chosen, self.n_coarse, key, STREAM_COARSE)
        if only_coarse:
            return Placement(packed(chosen, edges, capacity))
        first = self._evaluated(rays, packed(chosen, edges), query, key is not None)
        fine = self.finer(chosen, edges, first.weights, key)
        with torch.no_grad():
            both = packed(chosen, torch.cat([edges, fine], 1).sort(1).values, capacity)
            if query is None or (self.alpha_threshold == 0 and self.early_stop_eps == 0):
                return Placement(both, (first,))
            return self.visible(rays, both, query, key is not None, capacity)._replace(rounds=(first,))

    def visible(
        self, rays: Rays, samples: PackedSamples, query: Query, in_training: bool, capacity: int | None
    ) -> Placement:
        """The samples that are neither transparent nor hidden by the densities that ``query`` gives."""
        found = query(rays, samples, self.early_stop_eps)
        check_instance("query", found, Densities)
        values = found.values.float()
        threshold = torch.full((), self.alpha_threshold, device=values.device)
        if in_training:
            depths = (values * (samples.t_ends - samples.t_starts)).nan_to_num(0.0, math.inf)
            is_used = torch.arange(len(values), device=values.device) < samples.offsets[-1]  # the tail may hold anything
            mean = torch.where(is_used, -torch.expm1(-depths), 0.0).sum() / samples.offsets[-1].clamp(min=1)
            threshold = (mean * 0.1).clamp(max=self.alpha_threshold)  # a tenth: intervals differ in length
        return prune_found(found, samples, Pruning(self.early_stop_eps, threshold), capacity)

    def _most(self, capacity: int | None, march_capacity: int | None, only_coarse: bool) -> int | None:
        """How many rays fit in both rounds; None: all."""
        each = self.n_coarse if only_coarse else self.n_coarse + self.n_fine
        return rays_that_fit((capacity, each), (march_capacity, self.n_coarse))

    def _evaluated(self, rays: Rays, coarse: PackedSamples, query: Query | None, in_training: bool) -> Round:
        """The coarse round: samples, weights with gradient, and what the coarse field gave."""
        output = None
        if self.field is None:
            assert query is not None
            found = query(rays, coarse)
        elif in_training or torch.is_grad_enabled():
            output = self.field.at_samples(rays, coarse)
            found = Densities(output.density)
        else:
            found = self.field.query(rays, coarse)
        check_instance("query", found, Densities)
        return Round(coarse, weights_of(found.values, coarse), output)

    @torch.no_grad()
    def finer(self, chosen: Chosen, edges: Tensor, weights: Tensor, key: Tensor | None) -> Tensor:
        """[K, n_fine] places between edges [K, n_coarse + 1], dense where weights [K * n_coarse] are large; rising."""
        k, n = len(edges), self.n_coarse
        of_rays = torch.arange(0, k * n + 1, n, dtype=torch.int32, device=edges.device)
        sums = segmented_sum(weights + self.weight_floor, offsets=of_rays).view(k, n)
        cdfs = torch.nn.functional.pad(sums, (1, 0))
        jitter = None
        if key is not None:
            jitter = random_uniform(key, STREAM_FINE, len(chosen.kept), 1)[:, 0][chosen.rays]
        return importance_sampling(edges, cdfs, self.n_fine, jitter=jitter).samples
