"""``nerfacc.data_specs``: places and intervals along rays, in rows or in one list."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Places along rays, in rows or in one list.

    Args:
        vals: rows [..., n_samples], one per ray, and nothing else is needed; or one list [N] of all rays, with
            ``packed_info`` or ``ray_indices``.
        packed_info: [R, 2] int64, start and count of each ray's entries.
        ray_indices: [N] int64, the ray of each entry.
        is_valid: [N] bool, False where room was left for more samples than there are.

    >>> nerfacc.RaySamples(torch.tensor([0.5, 1.5, 0.5]), packed_info=torch.tensor([[0, 2], [2, 1]])).device
    device(type='cpu')
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Edges of intervals along rays, which may touch (an edge of both) or leave gaps.

    Args:
        vals: rows [..., n_edges] of touching intervals; or one list [N] of all rays, with ``packed_info`` or
            ``ray_indices``, and the two flags.
        packed_info: [R, 2] int64, start and count of each ray's edges.
        ray_indices: [N] int64, the ray of each edge.
        is_left: [N] bool, whether an interval begins at the edge.
        is_right: [N] bool, whether one ends there.

    >>> edges = nerfacc.RayIntervals(
    ...     torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]),
    ...     ray_indices=torch.tensor([0, 0, 0, 1, 1]),
    ...     is_left=torch.tensor([True, True, False, True, False]),
    ...     is_right=torch.tensor([False, True, True, False, True]),
    ... )
    >>> edges.vals[edges.is_left]
    tensor([0., 1., 0.])
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.vals.device
