"""A ball that moves through a grid with bins in time, and rays that look at it; for the tests of such grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import rand

FIRST, LAST = 2.0, 5.0
RADIUS = 0.3


def ball(positions: Tensor, times: Tensor) -> Tensor:
    """A soft ball that crosses the box while the training views, say six, are taken: it moves by its size between two."""
    share = (times - FIRST) / (LAST - FIRST)
    center = torch.stack([1.6 * share - 0.8, 0.3 * torch.sin(6 * share), torch.zeros_like(share)], -1)
    return 200 * torch.exp(-8 * ((positions - center).norm(dim=-1) / RADIUS) ** 2)


def fog(positions: Tensor, times: Tensor) -> Tensor:
    return torch.full_like(times, 2.0)


def bound(device: str = "cpu", **options: Any) -> OccupancyGrid:
    grid = OccupancyGrid(**{"resolution": 16, "n_times": 8, "decay": 0.8, "step_size": 0.025, **options})
    return grid.bind([-1, -1, -1, 1, 1, 1]).to(device)


def train(grid: OccupancyGrid, density: Callable[..., Tensor], updates: int, first: int = 0) -> None:
    for update in range(first, first + updates):
        key = make_key(0, step=16 * update, device=grid.occs.device)
        grid.update(density, step=16 * update, key=key, times=(FIRST, LAST))


def rays(n: int, device: str = "cpu", low: float = FIRST, high: float = LAST) -> Rays:
    """From a sphere of radius 3 into the box, at random times."""
    origins = nn.functional.normalize(rand(n, 3, seed=0, low=-1.0), dim=-1) * 3
    directions = nn.functional.normalize(rand(n, 3, seed=1, low=-0.7, high=0.7) - origins, dim=-1)
    times = rand(n, seed=2, low=low, high=high)
    return Rays(*(t.to(device) for t in (origins, directions, torch.zeros(n), torch.full((n,), 10.0), times)))


def same(a: PackedSamples, b: PackedSamples) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
