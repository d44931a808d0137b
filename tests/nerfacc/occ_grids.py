"""Occupancy grids for the tests of the estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.nerfacc import OccGridEstimator
from tests.ops.harness import rand

BOX = [-1.0, -0.5, 0.0, 1.0, 1.5, 2.0]
SHAPE = (4, 8, 6)


def estimator(device: str = "cpu", levels: int = 2, share: float | None = None) -> OccGridEstimator:
    grid = OccGridEstimator(BOX, resolution=list(SHAPE), levels=levels).to(device)
    if share is not None:
        grid.binaries.copy_(rand(*grid.binaries.shape, seed=1) < share)
    return grid


def random_rays(device: str, n: int = 60) -> tuple[Tensor, Tensor]:
    origins = rand(n, 3, seed=4, low=-3, high=3)
    directions = rand(n, 3, seed=5, low=-1) - 0.3 * origins
    return origins.to(device), torch.nn.functional.normalize(directions, dim=-1).to(device)


def cells_of(grid: OccGridEstimator, points: Tensor, level: int) -> Tensor:
    """Indices over all levels of the cells that hold points of a level."""
    box = grid.aabbs[level].double()
    place = (points.double() - box[:3]) / (box[3:] - box[:3]) * torch.tensor(SHAPE, device=points.device)
    x, y, z = place.long().unbind(-1)
    assert ((place >= 0) & (place < torch.tensor(SHAPE, device=points.device))).all()
    return ((level * SHAPE[0] + x) * SHAPE[1] + y) * SHAPE[2] + z
