"""What of a scene a film should keep in its pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.estimators.base import Estimator


def object_box(estimator: Estimator, aabb: Tensor) -> Tensor:
    """The box [2, 3] around the occupied cells of a grid's first level, on the CPU; without a grid, or cells, ``aabb``.

    Args:
        estimator: with ``binaries`` [L, X, Y, Z] bool, as :class:`OccupancyGrid` has, or without.
        aabb: [2, 3], the scene's box, which the first level fills.
    """
    aabb = aabb.detach().cpu()
    cells = getattr(estimator, "binaries", None)
    if not isinstance(cells, Tensor) or cells.ndim != 4 or not bool(cells[0].any()):
        return aabb
    found = cells[0].nonzero().cpu()
    low, high = found.amin(0), found.amax(0) + 1
    size = (aabb[1] - aabb[0]) / torch.tensor(cells.shape[1:])
    return torch.stack([aabb[0] + low * size, aabb[0] + high * size])
