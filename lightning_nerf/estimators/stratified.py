"""What estimators of a fixed number of samples per ray share: intervals, rays that fit, strata, packed lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.checks import BadArgument, check_instance
from lightning_nerf.estimators.base import Estimator, corners
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.importance import importance_sampling
from lightning_nerf.ops.pack import check_capacity
from lightning_nerf.ops.random import random_uniform
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.ops.rounds import SPACINGS as ROUND_SPACINGS
from lightning_nerf.ops.rounds import Chosen, even_places, places_reference, round_rays, round_samples
from lightning_nerf.scene_box import SceneBox, check_corners
from lightning_nerf.types import PackedSamples, Rays

Spacing = Literal["uniform", "disparity", "power"]
SPACINGS = ("uniform", "disparity", "power")
POWER = -1.5  # lambda of Zip-NeRF's power transformation
_NEAREST = 2.0**-10  # of far: where disparity spacing begins if near <= 0 cannot be refused without a wait


class StratifiedEstimator(Estimator):
    """Base of estimators that put a fixed number of samples on each active ray, one in each of as many strata.

    Args:
        spacing: "uniform", strata of equal length; "disparity", of equal length in 1 / t; "power", of equal length in
            :func:`warp`: even in t near the camera, where near may be 0, and sparser far away than even in 1 / t.
        clip_to_box: cut each ray's interval at the scene's box, where the box has no contraction.
    """

    aabb: Tensor  # [2, 3] float32, the scene's box
    clips: Tensor  # [] bool, whether intervals are cut at the box
    is_clipping: bool | None  # the same for the host; None while no scene is bound

    def __init__(self, spacing: Spacing, clip_to_box: bool) -> None:
        super().__init__()
        if spacing not in SPACINGS:
            raise BadArgument(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")
        check_instance("clip_to_box", clip_to_box, bool)
        self.spacing: Spacing = spacing
        self.clip_to_box = clip_to_box
        self.register_buffer("aabb", torch.full((2, 3), float("nan")))
        self.register_buffer("clips", torch.zeros((), dtype=torch.bool))
        self.is_clipping = None

    @typed_errors
    @torch.no_grad()
    def bind(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> StratifiedEstimator:
        """See :meth:`Estimator.bind`; corners alone are a box without contraction."""
        box = corners(scene_box)
        check_corners("scene_box", box)
        contracted = isinstance(scene_box, SceneBox) and scene_box.contraction != "none"
        self.aabb.copy_(box)
        self.clips.fill_(self.clip_to_box and not contracted)
        self._read_box()
        return self

    def box_for_fields(self, scene_box: SceneBox | Tensor | Sequence[float] | Sequence[Sequence[float]]) -> SceneBox:
        """The box of :meth:`bind` for fields of the estimator's own."""
        return scene_box if isinstance(scene_box, SceneBox) else SceneBox(self.aabb.clone())

    def _read_box(self) -> None:
        self.is_clipping = bool(self.clips) if bool(self.aabb.isfinite().all()) else None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_box()

    @torch.no_grad()
    def choose(self, rays: Rays, most: int | None, exact: bool) -> Chosen:
        """The rays that get samples: active ones whose interval is not empty, at most the first ``most`` of them.

        ``exact``: the host counts, and no entry is unused. Else nothing on CUDA synchronizes. ``most`` None: no limit.
        """
        near, far = self._intervals(rays)
        free = exact or near.device.type == "cpu"  # else looking would have the step wait for the device
        moves = self.spacing == "disparity" and not free
        chosen = round_rays(near, far, most, nearest=_NEAREST if moves else 0.0)
        if exact:
            count = int(chosen.offsets[-1])
            index, near, far, used = (each[:count] for each in chosen[:4])
            chosen = Chosen(index, near, far, used, chosen.offsets, chosen.kept)
        if self.spacing == "disparity" and free:
            behind = chosen.used & (chosen.near <= 0)
            if bool(behind.any()):
                least = float(chosen.near[behind].min())
                raise BadArgument(f"rays.near: expected > 0, since spacing='disparity' divides by it, got {least:g}")
        return chosen

    def _intervals(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """near, far [R], to be sampled between; a miss has both at inf."""
        near, far = rays.near.detach().float(), rays.far.detach().float()
        if (self.clip_to_box or self.spacing == "power") and self.is_clipping is None:
            raise RuntimeError(f"{type(self).__name__} is not bound to a scene: call bind(scene_box) first")
        if self.is_clipping:
            near, far, _ = (t[:, 0] for t in ray_aabb(rays.origins, rays.directions, self.aabb[None], near, far))
        return near, far

    @torch.no_grad()
    def strata(self, chosen: Chosen, n: int, key: Tensor | None, stream: int) -> Tensor:
        """Edges [K, n + 1] of n intervals on each chosen ray, rising; 0 for unused entries.

        Interval k holds the sample ``(k + jitter) / n`` of the way, evenly in t or in 1 / t, and ends midway to the next
        ones. The jitter in [0, 1) is a ray's own, drawn by ``key`` in ``stream``; 0.5 without key.
        """
        jitter = None
        if key is not None:
            jitter = random_uniform(key, stream, len(chosen.kept), 1)[:, 0][chosen.rays]
        unit = torch.arange(2.0, device=chosen.near.device).expand(len(chosen.near), 2)
        if self.spacing == "uniform":
            ends = torch.stack([chosen.near, chosen.far], 1)
            return importance_sampling(ends, unit, n, jitter=jitter).edges
        return self.at_shares(chosen, importance_sampling(unit, unit, n, jitter=jitter).edges)

    def at_shares(self, chosen: Chosen, share: Tensor) -> Tensor:
        """Places [K, m] on each chosen ray: the given shares of the way from near (0) to far (1), in t or in 1 / t."""
        if self.spacing != "power":
            return places_reference(share, chosen.near, chosen.far, chosen.used, ROUND_SPACINGS.index(self.spacing))
        used, near, far = (t[:, None] for t in (chosen.used, chosen.near, chosen.far))
        half_side = 0.5 * (self.aabb[1] - self.aabb[0]).amax().double()
        ways = (partial(each, half_side=half_side) for each in (warp, unwarp))
        return torch.where(used, even_places(share, near, far, used, *ways), 0.0)

    def packed_at(self, chosen: Chosen, share: Tensor, capacity: int | None = None) -> PackedSamples:
        """:func:`packed` between the places of :meth:`at_shares`, in one kernel where there is one."""
        if self.spacing == "power":
            return packed(chosen, self.at_shares(chosen, share), capacity)
        return packed(chosen, share, capacity, self.spacing)


def warp(t: Tensor, half_side: Tensor | float) -> Tensor:
    r"""Distances t >= 0 as numbers of which strata of the spacing "power" have equal shares.

    P(2 x, -1.5), where x is t in half-sides of the scene's box, in which cameras lie within 1, and

    .. math:: P(x, \lambda) = \frac{|\lambda - 1|}{\lambda}
        \left(\left(\frac{x}{|\lambda - 1|} + 1\right)^\lambda - 1\right)

    Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Zip-NeRF", ICCV 2023, supplement.
    """
    scale = abs(POWER - 1)
    return scale / POWER * ((t.clamp(min=0) * (2 / scale) / half_side + 1) ** POWER - 1)


def unwarp(s: Tensor, half_side: Tensor | float) -> Tensor:
    """The inverse of :func:`warp`."""
    scale = abs(POWER - 1)
    return 0.5 * scale * half_side * ((s * (POWER / scale) + 1) ** (1 / POWER) - 1)


def rays_that_fit(*rounds: tuple[int | None, int]) -> int | None:
    """How many rays fit in all rounds, each a capacity and the samples that it has of a ray; None: no round has a limit."""
    fits: list[int] = []
    for capacity, count in rounds:
        if capacity is not None:
            check_capacity(capacity)
            fits.append(capacity // count)
    return min(fits, default=None)


def weights_of(densities: Tensor, samples: PackedSamples) -> Tensor:
    """Weights [N] of samples, see :func:`~lightning_nerf.ops.composite.composite`; differentiable in densities [N]."""
    nothing = samples.t_starts.new_empty(len(samples.t_starts), 0)
    weights = composite(
        densities.float(), nothing, samples.t_starts, samples.t_ends, samples.offsets, return_weights=True
    ).weights
    assert weights is not None
    return weights


def packed(chosen: Chosen, edges: Tensor, capacity: int | None = None, spacing: str = "places") -> PackedSamples:
    """The intervals between edges [K, n + 1] as one list, of length K n or ``capacity``; the tail is zero.

    Edges are places, or shares of the way from near to far in a spacing.
    """
    return PackedSamples(*round_samples(chosen, edges, spacing, capacity), chosen.kept)
