"""Sums over samples whose rays may be anything."""

from __future__ import annotations

import torch
from torch import Tensor


def in_range(ray_indices: Tensor, n_rays: int, source: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values [N, ...] to add up, where samples of no ray count as nothing.

    On a CPU they have been refused. On CUDA there is no looking without a wait, and an index out of range would end the
    process's use of the device.
    """
    if not ray_indices.is_cuda or n_rays == 0:
        return ray_indices, source
    inside = (ray_indices >= 0) & (ray_indices < n_rays)
    of_none = torch.zeros((), dtype=source.dtype, device=source.device)
    return torch.where(inside, ray_indices, 0), torch.where(inside.view(-1, *[1] * (source.ndim - 1)), source, of_none)
