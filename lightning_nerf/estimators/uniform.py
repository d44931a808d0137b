"""A fixed number of samples on each ray."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import check_integer
from lightning_nerf.estimators.stratified import Spacing, StratifiedEstimator, packed, rays_that_fit
from lightning_nerf.ops.random import STREAM_UNIFORM
from lightning_nerf.types import Placement, Query, Rays


class Uniform(StratifiedEstimator):
    """Puts ``count`` samples on each active ray, one in each of as many strata between its near and far.

    Sample k lies ``(k + jitter) / count`` of the way, in t or in 1 / t; its interval ends midway to the next ones. With a
    key each ray has one random jitter in [0, 1) for all its samples, without key it is 0.5. There is no gradient, and no
    density is asked for.

    A ray whose near and far are not finite, or leave nothing to sample, gets no samples. Given a capacity, rays whose
    samples do not fit are dropped (``kept``) and nothing on CUDA synchronizes with the host.

    >>> import torch
    >>> from lightning_nerf import Rays, Uniform
    >>> uniform = Uniform(count=4).bind([-1, -1, -1, 1, 1, 1])
    >>> rays = Rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.full((1,), 9.0))
    >>> uniform.place(rays).samples.t_starts  # the box begins at t = 1 and ends at t = 3
    tensor([1.0000, 1.5000, 2.0000, 2.5000])

    Args:
        count: samples on each active ray, >= 1.
        spacing: "uniform": strata of equal length. "disparity": of equal length in 1 / t, so that they grow with the
            distance; near has to be > 0. A smaller one is refused on a CPU and wherever no capacity is given. Elsewhere
            such a ray begins at far / 1024, since to look would have each step wait for the device. "power": of equal
            length in :func:`~lightning_nerf.estimators.stratified.warp`, even in t near the camera; near may be 0.
        clip_to_box: cut each ray's interval at the scene's box, in a scene without contraction; a ray that misses the box
            gets no samples. False: near and far of the rays alone count, and no scene has to be bound.

    Raises:
        BadArgument: an argument, a capacity or near is out of range.
        RuntimeError: no scene is bound.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields for view synthesis", ECCV 2020,
    equation 2; one jitter for all samples of a ray follows NerfAcc.
    """

    def __init__(self, count: int = 128, spacing: Spacing = "uniform", clip_to_box: bool = True) -> None:
        super().__init__(spacing, clip_to_box)
        check_integer("count", count, 1, 2**20)
        self.fixed_count = count

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
        """See :meth:`Estimator.place`. ``query`` and ``march_capacity`` play no part."""
        assert self.fixed_count is not None
        chosen = self.choose(rays, rays_that_fit((capacity, self.fixed_count)), exact=capacity is None)
        return Placement(packed(chosen, self.strata(chosen, self.fixed_count, key, STREAM_UNIFORM), capacity))
