"""Rays and boxes for the tests of grids."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.nerfacc.data_specs import RayIntervals, RaySamples
from lightning_nerf.nerfacc.grid import _enlarge_aabb
from tests.ops.harness import rand

BOX = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.5, 2.0])
DOUBLING = torch.stack([_enlarge_aabb(BOX, 2**level) for level in range(3)])


def random_rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """From inside and outside, some parallel to axes, of different lengths."""
    origins = rand(n, 3, seed=seed, low=-5, high=5)
    origins[::3] *= 0.2
    directions = rand(n, 3, seed=seed + 1, low=-1) - 0.2 * origins
    directions[::7, 0] = 0.0
    directions[5::11, 1:] = 0.0
    directions[(directions == 0).all(-1)] = 1.0
    return origins, directions


def random_grid(boxes: int, *shape: int, share: float = 0.4, seed: int = 3) -> Tensor:
    return rand(boxes, *shape, seed=seed) < share


def samples_of(intervals: RayIntervals, samples: RaySamples) -> tuple[Tensor, Tensor, Tensor]:
    assert intervals.is_left is not None
    assert intervals.is_right is not None
    assert samples.ray_indices is not None
    assert samples.is_valid is not None
    return samples.ray_indices[samples.is_valid], intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]


def with_device(device: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device) for t in tensors]
