"""Estimators that need no grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nerf import Estimator, PackedSamples, Placement, Query, Rays, Round, SceneBox
from lightning_nerf.estimators.base import corners
from lightning_nerf.ops.importance import importance_sampling
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

    @property
    def fixed_count(self) -> int:  # type: ignore[override]
        return self.n

    @torch.no_grad()
    def bind(self, scene_box: SceneBox | Tensor | Sequence[float]) -> UniformSamples:
        self.aabb.copy_(corners(scene_box))
        return self

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
        edges, hit = self.edges(rays, key)
        return Placement(packed(edges, hit, capacity))

    def edges(self, rays: Rays, key: Tensor | None) -> tuple[Tensor, Tensor]:
        """[R, n + 1] along each ray, all 0 where it misses the box, and [R] bool whether it hits."""
        low, high, hit = ray_aabb(rays.origins, rays.directions, self.aabb[None], rays.near, rays.far)
        cuts = torch.arange(self.n + 1, device=low.device).expand(len(low), -1)
        if key is not None:
            jitter = random_uniform(key, STREAM_USER, len(low), self.n + 1) - 0.5
            cuts = cuts + torch.cat([torch.zeros_like(low), jitter[:, 1:-1], torch.zeros_like(low)], 1)
        edges = low + (high - low) * cuts / self.n  # inf and NaN where a ray misses the box
        return torch.where(hit, edges, 0.0), hit[:, 0]


class CoarseToFine(UniformSamples):
    """Two rounds: ``n`` uniform samples, whose weights say where ``n_fine`` finer ones go. The first round's weights are
    for losses; they have gradients."""

    def __init__(self, n: int = 24, n_fine: int = 24) -> None:
        super().__init__(n)
        self.n_fine = n_fine

    @property
    def fixed_count(self) -> int:  # type: ignore[override]
        return self.n_fine

    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        if query is None:
            return super().place(rays, key=key, capacity=capacity)
        with torch.no_grad():
            edges, hit = self.edges(rays, key)
            coarse = packed(edges, torch.ones_like(hit), edges[:, 1:].numel())  # a fixed number: nothing waits
        deltas = edges.diff(dim=1)
        depths = query(rays, coarse).values.view_as(deltas) * deltas
        weights = (1 - torch.exp(-depths)) * torch.exp(-(depths.cumsum(1) - depths))
        with torch.no_grad():
            shares = weights + 0.01 / self.n  # every place has a chance
            cdfs = torch.cat([torch.zeros_like(hit)[:, None], (shares / shares.sum(1, keepdim=True)).cumsum(1)], 1)
            jitter = None if key is None else random_uniform(key, STREAM_USER + 1, len(hit), 1)[:, 0]
            fine = importance_sampling(edges, cdfs, self.n_fine, jitter=jitter).edges
            samples = packed(fine, hit, capacity)
        return Placement(samples, (Round(coarse, weights.reshape(-1)),))


def packed(edges: Tensor, hit: Tensor, capacity: int | None) -> PackedSamples:
    """The intervals between edges [R, n + 1] of the rays that hit, as one list."""
    n = edges.shape[1] - 1
    offsets, kept = pack(n * hit.int(), capacity)
    place = torch.arange(int(offsets[-1]) if capacity is None else capacity, device=offsets.device)
    used = place < offsets[-1]  # the rest is the tail: t = 0 and ray 0
    ray = torch.where(used, torch.searchsorted(offsets[1:], place, right=True), 0)
    first = (place - offsets[ray]).clamp(max=n - 1)
    if len(edges) == 0:
        return PackedSamples(torch.zeros_like(place).float(), torch.zeros_like(place).float(), ray.int(), offsets, kept)
    t_starts, t_ends = (torch.where(used, edges[ray, i], 0.0) for i in (first, first + 1))
    return PackedSamples(t_starts, t_ends, ray.int(), offsets, kept)
