"""A field with an extra channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_nerf import FieldOutput, HashGrid, RadianceField
from lightning_nerf.fields.activations import truncated_exp


class LabelField(RadianceField):
    """Says of each point, besides density and colour, how much it belongs to the red ball."""

    def __init__(self, width: int = 32, n_levels: int = 4) -> None:
        super().__init__()
        self.encode = HashGrid(n_levels=n_levels, log2_table_size=14, base_resolution=8, max_resolution=32)
        self.net = nn.Sequential(nn.Linear(self.encode.n_outputs, width), nn.ReLU(), nn.Linear(width, 5))

    def raw(self, positions: Tensor) -> Tensor:
        return self.net(self.encode(self.unit_positions(positions))).float()

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        return truncated_exp(self.raw(positions)[:, 0])

    def forward(self, positions: Tensor, directions: Tensor, times: Tensor | None = None) -> FieldOutput:
        density, rgb, label = self.raw(positions).split([1, 3, 1], dim=1)
        return FieldOutput(truncated_exp(density[:, 0]), torch.sigmoid(rgb), {"label": torch.sigmoid(label)})
