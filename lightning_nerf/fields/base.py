"""The interface of a radiance field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nerf.types import FieldOutput, SceneBox


class RadianceField(nn.Module, ABC):
    """A function from positions (and directions, and times) to density and colour.

    Subclasses implement :meth:`density` and :meth:`forward`. Both take plain tensors and any number of points, zero
    included, and return densities >= 0 per unit length of world space. The scene's box arrives by :meth:`bind`, is saved in
    the ``aabb`` buffer, and so travels with the checkpoint.
    """

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

    def unit_positions(self, positions: Tensor) -> Tensor:
        """World positions [N, 3] with the scene's box mapped to [0, 1]^3."""
        if not self._bound:
            raise RuntimeError(f"{type(self).__name__} knows no scene box: call bind(scene_box) first")
        return torch.addcmul(self._to_unit[1], positions, self._to_unit[0])

    @abstractmethod
    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Density [N] at positions [N, 3] (world space) and, for dynamic fields, times [N] in [0, 1]."""

    @abstractmethod
    def forward(self, positions: Tensor, directions: Tensor, times: Tensor | None = None) -> FieldOutput:
        """Density and colour at positions [N, 3], seen along directions [N, 3] (any length)."""
