"""An estimator that needs no grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nerf import Estimator, PackedSamples, Rays, SceneBox
from lightning_nerf.estimators.base import corners
from lightning_nerf.ops.pack import pack
from lightning_nerf.ops.random import STREAM_USER, random_uniform
from lightning_nerf.ops.ray_aabb import ray_aabb


class UniformSamples(Estimator):
    """Cuts each ray's way through the scene's box into ``n`` samples; with a key, the cuts are jittered (stratified)."""

    aabb: Tensor  # [2, 3]

    def __init__(self, n: int = 32) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n: expected >= 1, got {n}")
        self.n = n
        self.register_buffer("aabb", torch.full((2, 3), float("nan")))

    @torch.no_grad()
    def bind(self, scene_box: SceneBox | Tensor | Sequence[float]) -> UniformSamples:
        self.aabb.copy_(corners(scene_box))
        return self

    @torch.no_grad()
    def sample(
        self, rays: Rays, density_fn: Any = None, *, key: Tensor | None = None, capacity: int | None = None, **_: Any
    ) -> PackedSamples:
        low, high, hit = ray_aabb(rays.origins, rays.directions, self.aabb[None], rays.near, rays.far)
        offsets, kept = pack(self.n * hit[:, 0].int(), capacity)
        place = torch.arange(int(offsets[-1]) if capacity is None else capacity, device=offsets.device)
        ray = torch.searchsorted(offsets[1:], place, right=True)
        used = place < offsets[-1]  # the rest is the tail: t = 0 and ray 0
        ray = torch.where(used, ray, 0)
        first = (place - offsets[ray]).clamp(max=self.n - 1)
        cuts = torch.arange(self.n + 1, device=offsets.device).expand(len(low), -1)
        if key is not None:
            jitter = random_uniform(key, STREAM_USER, len(low), self.n + 1) - 0.5
            jitter[:, [0, -1]] = 0.0
            cuts = cuts + jitter
        t = low + (high - low) * cuts / self.n  # [R, n + 1]; inf and NaN where a ray misses the box
        t_starts, t_ends = (torch.where(used, t[ray, i], 0.0) for i in (first, first + 1))
        return PackedSamples(t_starts, t_ends, ray.int(), offsets, kept)
