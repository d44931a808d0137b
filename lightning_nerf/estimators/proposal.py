"""Proposal networks: small fields find where samples are worth their cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument, BadType, check_instance, check_integer, check_number
from lightning_nerf.estimators.stratified import Chosen, Spacing, StratifiedEstimator, rays_that_fit, weights_of
from lightning_nerf.ops.importance import importance_sampling
from lightning_nerf.ops.random import STREAM_PROPOSALS, random_uniform
from lightning_nerf.ops.rounds import round_cdfs
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Placement, Query, Rays, Round, RoundField


class Proposal(StratifiedEstimator):
    r"""Narrows samples down round by round, by the densities of small fields of its own; the module's field sees few.

    On each active ray, with one field for each entry of ``counts``:

    1. ``counts[0]`` samples, one in each stratum between near and far.
    2. The densities of the first field give weights w_i, see :func:`~lightning_nerf.ops.composite.composite`.
    3. ``counts[1]`` new samples from the inverse of the CDF of :math:`(w_i + padding)^a`, which is linear within each
       interval; they replace those before. And so on, the last round giving ``n_fine``.

    The exponent a grows from 0 to 1 in the first ``anneal_steps`` steps, :math:`a = b f / ((b - 1) f + 1)` with the share
    f of these steps and the slope b: a young field must not hide what it has not seen. Without key it is 1.

    Each round before the last is a :class:`~lightning_nerf.types.Round`, whose weights have gradients in its field's
    parameters; where samples lie has no gradient. Train the fields by :class:`~lightning_nerf.Interlevel`: no color does.
    The module's field is not asked, so ``query`` plays no part. Nothing on CUDA synchronizes with the host, given a
    capacity.

    >>> import torch
    >>> from lightning_nerf import Proposal, ProposalField, Rays, SceneBox
    >>> fields = [ProposalField(n_levels=2, log2_table_size=8, max_resolution=32) for _ in range(2)]
    >>> estimator = Proposal(fields, counts=[8, 6], n_fine=4).bind([-1, -1, -1, 1, 1, 1])
    >>> rays = Rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.full((1,), 9.0))
    >>> placement = estimator.place(rays)
    >>> len(placement.samples.t_starts), [len(each.weights) for each in placement.rounds]
    (4, [8, 6])

    Args:
        fields: one for each round before the last, a :class:`ProposalField` or any :class:`~lightning_nerf.RadianceField`;
            in recipes by ``class_path``. They are parts of the estimator, so the optimizer's group "estimator" trains them.
        counts: samples of each of these rounds on each active ray, as many numbers as fields.
        n_fine: samples of the last round, which the module's field sees.
        spacing: of the first round, "uniform", or "disparity" for scenes that go on far behind: then near must be > 0; or
            "power" for the same with content from the camera on, see :func:`~lightning_nerf.estimators.stratified.warp`.
        clip_to_box: cut each ray's interval at the scene's box, in a scene without contraction.
        padding: added to each weight, so that every interval may get samples, >= 0.
        anneal_steps: steps in which a grows to 1, >= 0.
        anneal_slope: b, > 0.
        learn_every: fields learn in one step of so many, >= 1; in the first ``anneal_steps`` steps in more, beginning with
            all. Without their backward pass a step is cheaper, and they follow the module's field fast enough.

    Raises:
        BadArgument: an argument, a capacity or near is out of range.
        RuntimeError: no scene is bound.

    Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Mip-NeRF 360", CVPR 2022, sections 3 and 4 (annealing: equation
    18); hash grids as proposals: Tancik et al., "Nerfstudio", SIGGRAPH 2023.
    """

    def __init__(
        self,
        fields: Sequence[RoundField],
        counts: Sequence[int] = (256, 96),
        n_fine: int = 48,
        spacing: Spacing = "uniform",
        clip_to_box: bool = True,
        padding: float = 0.01,
        anneal_steps: int = 1000,
        anneal_slope: float = 10.0,
        learn_every: int = 1,
    ) -> None:
        super().__init__(spacing, clip_to_box)
        check_instance("fields", fields, list, tuple)
        check_instance("counts", counts, list, tuple)
        for i, field in enumerate(fields):
            if not (isinstance(field, nn.Module) and isinstance(field, RoundField)):
                raise BadType(f"fields[{i}]: expected a RadianceField, got {type(field).__name__}")
        if not fields or len(fields) != len(counts):
            raise BadArgument(
                f"counts: expected one for each of the fields, >= 1, got {len(counts)} for {len(fields)} fields"
            )
        for i, count in enumerate(counts):
            check_integer(f"counts[{i}]", count, 1, 2**20)
        check_integer("n_fine", n_fine, 1, 2**20)
        check_number("padding", padding, "[0, inf)")
        check_integer("anneal_steps", anneal_steps, 0)
        check_number("anneal_slope", anneal_slope, "(0, inf)")
        check_integer("learn_every", learn_every, 1, 2**20)
        self.fields = nn.ModuleList(fields)  # type: ignore[arg-type]
        self.counts = tuple(counts)
        self.n_rounds = len(self.counts)
        self.n_fine = self.fixed_count = n_fine
        self.padding, self.anneal_steps, self.anneal_slope = padding, anneal_steps, anneal_slope
        self.learn_every = learn_every
        self.is_learning = True  # in this step

    def bind(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Proposal:
        """See :meth:`Estimator.bind`; binds the fields too."""
        super().bind(scene_box)
        for field in self.fields:
            assert isinstance(field, RoundField)
            field.bind(self.box_for_fields(scene_box))
        return self

    @property
    def variant(self) -> bool:
        """See :attr:`Estimator.variant`: whether fields learn in this step."""
        return self.is_learning

    def begin_step(self, update: int) -> None:
        """See :meth:`Estimator.begin_step`; a function of ``update`` alone, so that a resumed fit goes on alike."""
        warm = min(update / self.anneal_steps, 1.0) if self.anneal_steps > 0 else 1.0
        self.is_learning = update % (1 + int(warm * (self.learn_every - 1))) == 0

    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        """See :meth:`Estimator.place`; ``march_capacity`` bounds the samples of each round before the last."""
        most = rays_that_fit((capacity, self.n_fine), (march_capacity, max(self.counts)))
        chosen = self.choose(rays, most, exact=capacity is None)
        jitter = None if key is None else self._jitter(key, chosen)
        unit = torch.arange(2.0, device=chosen.near.device).repeat(len(chosen.near), 1)
        edges, cdfs, rounds = unit, unit, list[Round]()
        for i, count in enumerate(self.counts):
            edges = importance_sampling(edges, cdfs, count, jitter=None if jitter is None else jitter[i]).edges
            rounds.append(self._round(i, rays, chosen, edges))
            cdfs = self._cdfs(rounds[-1].weights.detach().view(-1, count), key)
        edges = importance_sampling(edges, cdfs, self.n_fine, jitter=None if jitter is None else jitter[-1]).edges
        samples = self.packed_at(chosen, edges, capacity)
        return Placement(samples, tuple(rounds), edges=edges)

    @torch.no_grad()
    def _jitter(self, key: Tensor, chosen: Chosen) -> Tensor:
        """[rounds, K] in [0, 1): one for all samples that a round puts on a ray."""
        draws = random_uniform(key, STREAM_PROPOSALS, len(chosen.kept), len(self.counts) + 1)
        return draws.t().index_select(1, chosen.rays)

    def _round(self, i: int, rays: Rays, chosen: Chosen, edges: Tensor) -> Round:
        """Samples between edges [K, n + 1], and their weights by the i-th field."""
        samples = self.packed_at(chosen, edges)
        field = self.fields[i]
        assert isinstance(field, RoundField)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_learning):
            output = field.at_samples(rays, samples)
        return Round(samples, weights_of(output.density, samples), output, edges)

    def _cdfs(self, weights: Tensor, key: Tensor | None) -> Tensor:
        """CDFs [K, n + 1] of weights [K, n], padded, and flattened in the first steps of training."""
        return round_cdfs(
            weights, key, padding=self.padding, anneal_steps=self.anneal_steps, anneal_slope=self.anneal_slope
        )
