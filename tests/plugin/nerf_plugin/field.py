"""Fields: one with an extra channel, one that moves, one that knows which camera looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_nerf import FieldOutput, HashGrid, RadianceField
from lightning_nerf.fields.activations import truncated_exp


class LabelField(RadianceField):
    """Says of each point, besides density and color, how much it belongs to the red ball."""

    def __init__(self, width: int = 32, n_levels: int = 4) -> None:
        super().__init__()
        self.encode = HashGrid(n_levels=n_levels, log2_table_size=14, base_resolution=8, max_resolution=32)
        self.net = nn.Sequential(nn.Linear(self.encode.n_outputs, width), nn.ReLU(), nn.Linear(width, 5))

    def raw(self, positions: Tensor) -> Tensor:
        return self.net(self.encode(self.unit_positions(positions))).float()

    def density(self, positions: Tensor) -> Tensor:
        return truncated_exp(self.raw(positions)[:, 0])

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        density, rgb, label = self.raw(positions).split([1, 3, 1], dim=1)
        return FieldOutput(truncated_exp(density[:, 0]), torch.sigmoid(rgb), {"label": torch.sigmoid(label)})


class TurningField(RadianceField):
    """Turns space back about the vertical axis by a learned angle per unit of time, and looks there."""

    wants = ("times",)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encode = HashGrid(n_levels=4, log2_table_size=14, base_resolution=8, max_resolution=32)
        self.net = nn.Sequential(nn.Linear(self.encode.n_outputs, width), nn.ReLU(), nn.Linear(width, 4))
        self.angle = nn.Parameter(torch.tensor(0.8))

    def raw(self, positions: Tensor, times: Tensor) -> Tensor:
        sin, cos = torch.sin(self.angle * times), torch.cos(self.angle * times)
        x, y, z = positions.unbind(-1)
        turned = torch.stack([cos * x + sin * y, cos * y - sin * x, z], -1)
        return self.net(self.encode(self.unit_positions(turned).clamp(0, 1))).float()

    def density(self, positions: Tensor, times: Tensor) -> Tensor:
        return truncated_exp(self.raw(positions, times)[:, 0])

    def forward(self, positions: Tensor, directions: Tensor, times: Tensor) -> FieldOutput:
        raw = self.raw(positions, times)
        return FieldOutput(truncated_exp(raw[:, 0]), torch.sigmoid(raw[:, 1:]))


class TintedField(RadianceField):
    """Colors depend on a code of the training camera; a camera that took no picture (-1) gets the mean of all codes."""

    wants = ("cameras",)

    def __init__(self, n_cameras: int = 20, width: int = 32) -> None:
        super().__init__()
        self.encode = HashGrid(n_levels=4, log2_table_size=14, base_resolution=8, max_resolution=48)
        self.net = nn.Sequential(nn.Linear(self.encode.n_outputs, width), nn.ReLU(), nn.Linear(width, 4))
        self.codes = nn.Parameter(torch.zeros(n_cameras, 3))

    def raw(self, positions: Tensor) -> Tensor:
        return self.net(self.encode(self.unit_positions(positions))).float()

    def density(self, positions: Tensor) -> Tensor:
        return truncated_exp(self.raw(positions)[:, 0] - 2)

    def forward(self, positions: Tensor, directions: Tensor, cameras: Tensor) -> FieldOutput:
        raw = self.raw(positions)
        known = (cameras >= 0)[:, None]
        codes = torch.where(known, self.codes[cameras.clamp(min=0)], self.codes.mean(0))
        return FieldOutput(truncated_exp(raw[:, 0] - 2), torch.sigmoid(raw[:, 1:] + codes))
