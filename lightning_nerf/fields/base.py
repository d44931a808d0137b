"""The interface of a radiance field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nerf.arguments import Recorded
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.types import FieldOutput, PackedSamples, Rays, Render, SceneBox


class RadianceField(Recorded, nn.Module, ABC):
    """A function from positions (and directions, and times) to density and colour.

    Subclasses implement :meth:`density` and :meth:`forward`. Both take plain tensors and any number of points, zero
    included, and return densities >= 0 per unit length of world space. The scene's box arrives by :meth:`bind`, is saved in
    the ``aabb`` buffer, and so travels with the checkpoint.
    """

    free_arguments: Collection[str] = ()
    """Constructor arguments that may differ between a checkpoint and the field that takes it: the weights mean the same."""

    aabb: Tensor  # [2, 3]
    _to_unit: Tensor  # [2, 3] factor and summand that take world space to the unit cube; follows aabb

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("aabb", torch.full((2, 3), float("nan")))
        self._bound = False
        self.register_buffer("_to_unit", torch.full((2, 3), float("nan")), persistent=False)

    @torch.no_grad()
    def bind(self, scene_box: SceneBox) -> None:
        """Learn where the scene is; called before training. Buffers are written in place."""
        self.aabb.copy_(scene_box.aabb)
        self._bound = bool(self.aabb.isfinite().all())
        scale = 1 / (self.aabb[1] - self.aabb[0])
        self._to_unit.copy_(torch.stack([scale, -self.aabb[0] * scale]))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.bind(SceneBox(self.aabb.clone()))

    @property
    def to_unit(self) -> Tensor:
        """[2, 3], factor and summand that map the scene's box to [0, 1]^3. An error while no scene is bound."""
        if not self._bound:
            raise RuntimeError(f"{type(self).__name__} knows no scene box: call bind(scene_box) first")
        return self._to_unit

    def unit_positions(self, positions: Tensor) -> Tensor:
        """World positions [N, 3] with the scene's box mapped to [0, 1]^3."""
        factor, summand = self.to_unit
        return torch.addcmul(summand, positions, factor)

    @abstractmethod
    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Density [N] at positions [N, 3] (world space) and, for dynamic fields, times [N] in [0, 1]."""

    @abstractmethod
    def forward(self, positions: Tensor, directions: Tensor, times: Tensor | None = None) -> FieldOutput:
        """Density and colour at positions [N, 3], seen along directions [N, 3] (any length)."""

    # -- along rays: what a field with fused kernels overrides ------------------------------------------------------

    def at_samples(self, rays: Rays, samples: PackedSamples) -> FieldOutput:
        """:meth:`forward` in the middle of each of N packed samples."""
        return self(*sample_points(rays, samples))

    def ray_densities(self, rays: Rays, samples: PackedSamples, early_stop_eps: float) -> tuple[Tensor, Tensor | None]:
        """Density [N] in the middle of each sample, and what :meth:`at_samples` may find in ``samples.evaluated``.

        A sample behind which its ray keeps less than ``early_stop_eps`` of its light matters to nobody: behind it the
        density may be any finite number >= 0. The second result, [N, k] or None, are features that need not be computed
        again; its rows that were not evaluated may hold anything.
        """
        positions, _, times = sample_points(rays, samples)
        return self.density(positions, times), None

    def can_render(self, rays: Rays) -> bool:
        """Is there a kernel for :meth:`render` of these rays, here and now?"""
        return False

    def render(self, rays: Rays, samples: PackedSamples, early_stop_eps: float, alpha_thre: Tensor) -> Render:
        """R rays in one pass, without gradient and background.

        What pruning by the two thresholds, :meth:`at_samples` and compositing would give, up to rounding.
        """
        raise NotImplementedError(f"{type(self).__name__} renders through an estimator and a renderer")
