"""What a third party would write: a field, and a module with a constructor of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import RadianceField
from lightning_nerf.modules import NeRFModule
from lightning_nerf.types import FieldOutput


class Blob(RadianceField):
    """A small perceptron; ``net`` may take its place."""

    def __init__(self, width: int = 8, bias: float = 0.0, net: nn.Module | None = None) -> None:
        super().__init__()
        self.bias = bias
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 4)) if net is None else net

    def density(self, positions: Tensor) -> Tensor:
        return self.forward(positions, positions).density

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        out = self.net(self.unit_positions(positions)).float()
        return FieldOutput(nn.functional.softplus(out[:, 0] + self.bias), out[:, 1:].sigmoid())


class BlobModule(NeRFModule):
    """Makes its parts itself, and calls ``save_hyperparameters`` as Lightning's tutorials do."""

    def __init__(self, *widths: int, field: Any = None, **options: Any) -> None:
        field = Blob(*widths) if field is None else field
        super().__init__(field, OccupancyGrid(resolution=16, step_size=0.05), **options)
        self.save_hyperparameters()


class SGD(torch.optim.SGD):
    """An optimizer without an average."""
