"""Camera poses on a sphere around the scene: [n, 3, 4] camera to world, x right, y up, looking along -z; world z up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument


def look_at(positions: Tensor, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Cameras at ``positions`` [n, 3] that look at ``target``, upright; not straight from above or below."""
    back = torch.nn.functional.normalize(positions - positions.new_tensor(target), dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(back.new_tensor([[0.0, 0.0, 1.0]]), back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, positions], -1)


def turntable_poses(n: int, radius: float, elevation: float = 30.0, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """n cameras on a circle around ``target``, ``elevation`` degrees above its horizon; a film of them loops."""
    if n < 1 or not radius > 0 or not -90 < elevation < 90:
        raise BadArgument(
            f"expected n >= 1, radius > 0 and -90 < elevation < 90, got n={n}, radius={radius}, elevation={elevation}"
        )
    azimuth = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return _poses(azimuth, torch.full_like(azimuth, math.sin(math.radians(elevation))), radius, target)


def spiral_poses(n: int, radius: float, elevations: tuple[float, float], turn: float = 0.0) -> Tensor:
    """n cameras spread evenly over the zone of a sphere between two elevations (degrees), on a golden spiral.

    ``turn``: where the spiral begins, in turns; another fraction gives a set of other cameras.
    """
    low, high = (math.sin(math.radians(e)) for e in elevations)
    i = torch.arange(n, dtype=torch.float64)
    golden = (math.sqrt(5) - 1) / 2
    return _poses(2 * math.pi * (turn + i * golden), low + (high - low) * (i + 0.5) / max(n, 1), radius)


def helix_poses(
    n: int, radius: float, elevations: tuple[float, float], turns: float = 2.0, target: Sequence[float] = (0.0, 0.0, 0.0)
) -> Tensor:
    """n cameras that wind around ``target``, ``turns`` times, from one elevation (degrees) to another at an even pace."""
    if n < 1 or not radius > 0 or not all(-90 < e < 90 for e in elevations):
        raise BadArgument(
            f"expected n >= 1, radius > 0 and -90 < elevations < 90, got n={n}, radius={radius}, elevations={elevations}"
        )
    share = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.full((1,), 0.5, dtype=torch.float64)
    low, high = (math.radians(e) for e in elevations)
    return _poses(2 * math.pi * turns * share, (low + (high - low) * share).sin(), radius, target)


def _poses(azimuth: Tensor, height: Tensor, radius: float, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """``height``: the sine of the elevation."""
    level = (1 - height**2).sqrt()
    around = torch.stack([level * azimuth.cos(), level * azimuth.sin(), height], -1)
    return look_at(radius * around + around.new_tensor(target), target).float()
