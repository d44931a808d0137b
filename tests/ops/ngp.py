"""A small Instant-NGP field for tests: parameters, points, and how results are compared."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.encodings import HashGrid
from lightning_nerf.ops.instant_ngp import SHAPES, Weights
from tests.ops.harness import generator, rand

LAYOUTS = [(16, 2), (8, 4)]  # levels, features per level
HALVES = [torch.bfloat16, torch.float16]
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
OPS = torch.ops.lightning_nerf

# Kernel and reference round the same operands; what differs is the order of float32 sums, which tips a rounding now and
# then. Among many numbers that is rare (1e-5 of the norm); among few, one may be off by the unit roundoff.
FORWARD = 1e-4


def normal(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(device)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative error of the norm."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


class Net(NamedTuple):
    """A field's parameters."""

    table: Tensor
    working: Tensor
    levels: Tensor
    weights: Weights


def net(layout: tuple[int, int], device: str) -> Net:
    """A small table with large entries, so that features vary and densities span orders of magnitude."""
    grid = HashGrid(n_levels=layout[0], n_features=layout[1], log2_table_size=12, max_resolution=256)
    table = 0.3 * normal(*grid.table.shape, seed=0)
    working = table.half()
    weights = [1.4 * normal(*s, seed=1 + i, device=device) / math.sqrt(s[1]) for i, s in enumerate(SHAPES.values())]
    return Net(working.float().to(device), working.to(device), grid.levels.to(device), Weights(*weights))


def points(n: int, device: str) -> tuple[Tensor, Tensor]:
    """Positions, one in twenty of them outside of the box, and directions of any length."""
    return rand(n, 3, seed=20 + n, low=-0.01, high=1.01).to(device), normal(n, 3, seed=21 + n, device=device)


def field_arguments(p: Net, x: Tensor, d: Tensor | None, dtype: torch.dtype) -> tuple[Any, ...]:
    return (x, d, p.table, p.working, p.levels, None, None, *p.weights, -1.0, dtype == torch.bfloat16, True)
