"""What of a scene a film should keep in its pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nerf.estimators.base import Estimator


def grid_cells(estimator: Estimator) -> Tensor | None:
    """Cells [L, X, Y, Z] bool that an estimator's ``binaries`` say are occupied, at any time; None: it keeps none."""
    cells = getattr(estimator, "binaries", None)
    if not isinstance(cells, Tensor) or cells.ndim not in (4, 5):
        return None
    return cells.any(0) if cells.ndim == 5 else cells  # [B, L, X, Y, Z]: of bins in time


def object_box(estimator: Estimator, aabb: Tensor) -> Tensor:
    """The box [2, 3] around the occupied cells of a grid's first level, on the CPU; without a grid, or cells, ``aabb``.

    Cells without an occupied neighbor are left out, if there are others: a grid keeps some specks that no picture shows,
    and a box with those in it would make the object small.

    Args:
        estimator: with ``binaries`` as :class:`OccupancyGrid` has, or without.
        aabb: [2, 3], the scene's box, which the first level fills.
    """
    aabb = aabb.detach().cpu()
    cells = grid_cells(estimator)
    if cells is None or not bool(cells[0].any()):
        return aabb
    occupied = cells[0].detach().cpu()
    neighbors = 27 * F.avg_pool3d(occupied[None, None].float(), 3, stride=1, padding=1)[0, 0] - occupied.float()
    with_neighbors = occupied & (neighbors > 0.5)
    found = (with_neighbors if bool(with_neighbors.any()) else occupied).nonzero()
    low, high = found.amin(0), found.amax(0) + 1
    size = (aabb[1] - aabb[0]) / torch.tensor(cells.shape[1:])
    return torch.stack([aabb[0] + low * size, aabb[0] + high * size])
