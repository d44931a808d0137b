"""The interface of a radiance field."""

from __future__ import annotations

from abc import ABC, abstractmethod

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

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("aabb", torch.full((2, 3), float("nan")))

    def bind(self, scene_box: SceneBox) -> None:
        """Learn where the scene is; called before training. The buffer is written in place."""
        self.aabb.copy_(scene_box.aabb)

    @abstractmethod
    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Density [N] at positions [N, 3] (world space) and, for dynamic fields, times [N] in [0, 1]."""

    @abstractmethod
    def forward(self, positions: Tensor, directions: Tensor, times: Tensor | None = None) -> FieldOutput:
        """Density and colour at positions [N, 3], seen along directions [N, 3] (any length)."""
