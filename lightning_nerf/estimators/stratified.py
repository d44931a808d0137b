"""What estimators of a fixed number of samples per ray share: intervals, rays that fit, strata, packed lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.checks import BadArgument, check_instance
from lightning_nerf.estimators.base import Estimator, corners
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.importance import importance_sampling
from lightning_nerf.ops.pack import check_capacity, pack
from lightning_nerf.ops.random import random_uniform
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.scene_box import SceneBox, check_corners
from lightning_nerf.types import PackedSamples, Rays

Spacing = Literal["uniform", "disparity", "power"]
SPACINGS = ("uniform", "disparity", "power")
POWER = -1.5  # lambda of Zip-NeRF's power transformation
_NEAREST = 2.0**-10  # of far: where disparity spacing begins if near <= 0 cannot be refused without a wait


class Chosen(NamedTuple):
    """K rays that get samples, in the order of all R rays. The last entries may be unused: ray 0, near and far 0."""

    rays: Tensor  # [K] int64, index of the ray
    near: Tensor  # [K] float32, of the interval to sample
    far: Tensor  # [K] float32
    used: Tensor  # [K] bool
    offsets: Tensor  # [R + 1] int32, CSR: ray r owns the entries ``offsets[r]`` to ``offsets[r + 1]``, one or none
    kept: Tensor  # [R] bool, see PackedSamples


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
        near, far, active = self._intervals(rays)
        offsets, kept = pack(active.int(), most)
        count = int(offsets[-1]) if exact else min(len(active) if most is None else most, len(active))
        slots = torch.arange(count, dtype=torch.int32, device=near.device)
        used = slots < offsets[-1]
        index = torch.where(used, torch.searchsorted(offsets[1:], slots, right=True), 0)
        near, far = torch.where(used, near[index], 0.0), torch.where(used, far[index], 0.0)
        if self.spacing == "disparity":
            behind = used & (near <= 0)
            free = exact or near.device.type == "cpu"  # else looking would have the step wait for the device
            if free and bool(behind.any()):
                raise BadArgument(
                    f"rays.near: expected > 0, since spacing='disparity' divides by it, got {float(near[behind].min()):g}"
                )
            near = torch.where(behind, _NEAREST * far, near)
        return Chosen(index, near, far, used, offsets, kept)

    def _intervals(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
        """near, far [R], and whether a ray is to be sampled between them [R]."""
        near, far = rays.near.detach(), rays.far.detach()
        if (self.clip_to_box or self.spacing == "power") and self.is_clipping is None:
            raise RuntimeError(f"{type(self).__name__} is not bound to a scene: call bind(scene_box) first")
        if self.is_clipping:
            near, far, _ = (t[:, 0] for t in ray_aabb(rays.origins, rays.directions, self.aabb[None], near, far))
        return near, far, (near < far) & near.isfinite() & far.isfinite()  # a miss has both at inf

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
        if self.spacing == "uniform":
            return torch.lerp(chosen.near[:, None], chosen.far[:, None], share)
        used, near, far = (t[:, None] for t in (chosen.used, chosen.near, chosen.far))
        half_side = 0.5 * (self.aabb[1] - self.aabb[0]).amax().double() if self.spacing == "power" else 1.0
        # float64: far may be a million times near. Each operation is monotone, and so are the edges.
        first, last = (warp(torch.where(used, t, 1.0).double(), self.spacing, half_side) for t in (near, far))
        t = unwarp(torch.addcmul(first, share.double(), last - first), self.spacing, half_side)
        return torch.where(used, t.float().clamp(near, far), 0.0)


def warp(t: Tensor, spacing: Spacing, half_side: Tensor | float = 1.0) -> Tensor:
    r"""Distances t > 0, with "power" >= 0, as numbers of which strata of a spacing have equal shares.

    "power" is P(2 x, -1.5), where x is t in half-sides of the scene's box, in which cameras lie within 1, and

    .. math:: P(x, \lambda) = \frac{|\lambda - 1|}{\lambda}
        \left(\left(\frac{x}{|\lambda - 1|} + 1\right)^\lambda - 1\right)

    Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Zip-NeRF", ICCV 2023, supplement.
    """
    if spacing == "uniform":
        return t
    if spacing == "disparity":
        return 1 / t
    scale = abs(POWER - 1)
    return scale / POWER * ((t.clamp(min=0) * (2 / scale) / half_side + 1) ** POWER - 1)


def unwarp(s: Tensor, spacing: Spacing, half_side: Tensor | float = 1.0) -> Tensor:
    """The inverse of :func:`warp`."""
    if spacing == "uniform":
        return s
    if spacing == "disparity":
        return 1 / s
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


def packed(chosen: Chosen, edges: Tensor, capacity: int | None = None) -> PackedSamples:
    """The intervals between edges [K, n + 1] as one list, of length K n or ``capacity``; the tail is zero."""
    n = edges.shape[1] - 1
    size = len(edges) * n
    if size >= 2**31:
        raise BadArgument(f"rays: expected fewer than 2**31 samples in all, got {len(edges)} rays of {n}")
    rays = chosen.rays.int()[:, None].expand(-1, n)
    tail = 0 if capacity is None else capacity - size
    t_starts, t_ends, indices = (
        torch.nn.functional.pad(each.reshape(size), (0, tail)) for each in (edges[:, :-1], edges[:, 1:], rays)
    )
    return PackedSamples(t_starts, t_ends, indices, chosen.offsets * n, chosen.kept)
