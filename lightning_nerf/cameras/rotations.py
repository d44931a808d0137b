"""Rotations by vectors, and the motions of a whole scene that its pictures do not tell."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-4  # of theta^2: series of three terms are exact in float64 below
_RANK = 1e-5  # of the largest singular value


def rotation_excess(vectors: Tensor) -> Tensor:
    r"""How rotations by vectors w [V, 3], in radians, exceed the identity: :math:`\exp([w]_\times) - I`, [V, 3, 3].

    .. math:: \frac{\sin\theta}{\theta} [w]_\times + \frac{1 - \cos\theta}{\theta^2} [w]_\times^2, \quad \theta = |w|

    The excess of a small rotation has the digits that the rotation itself would round away. Differentiable any number of
    times, at 0 as well (Rodrigues, 1840).
    """
    squared = (vectors * vectors).sum(-1)
    small = squared < _SMALL
    theta = torch.where(small, 1.0, squared).sqrt()
    half = (theta / 2).sin() / theta
    a = torch.where(small, 1 - squared / 6 * (1 - squared / 20), theta.sin() / theta)
    b = torch.where(small, 0.5 - squared / 24 * (1 - squared / 30), 2 * half * half)
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    outer = vectors[:, :, None] * vectors[:, None, :]
    square = outer - squared[:, None, None] * torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return a[:, None, None] * cross + b[:, None, None] * square


def similarity_basis(positions: Tensor, arms: Tensor, units: Tensor) -> Tensor:
    """Orthonormal rows [7, 6 V] of what a small similarity of the whole scene does to V cameras.

    Entries are those of [V, 6], view by view: rotation vector of a turn about the end of the camera's arm, and shift in
    units of its own. If there are fewer than seven independent ones, as of cameras in one place, the others are 0.

    Args:
        positions: [V, 3], of the cameras.
        arms: [V, 3], from the points that cameras turn about to the cameras.
        units: [V], length of a shift of 1.
    """
    offsets = positions.double() - positions.double().mean(0)
    pivots, scale = offsets - arms.double(), units.double()[:, None]
    n, zero = len(offsets), torch.zeros_like(offsets)
    rows = [torch.cat([zero, offsets / scale], 1)]
    for axis in torch.eye(3, dtype=torch.float64, device=offsets.device).expand(n, 3, 3).unbind(1):
        rows += [torch.cat([zero, axis / scale], 1), torch.cat([axis, torch.linalg.cross(axis, pivots) / scale], 1)]
    _, sizes, basis = torch.linalg.svd(torch.stack(rows).flatten(1), full_matrices=False)
    basis = basis * (sizes > _RANK * sizes[0])[:, None]
    padding = basis.new_zeros(7 - len(basis), basis.shape[1])
    return torch.cat([basis, padding]).float()
