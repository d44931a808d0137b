"""``nerfacc.data_specs``: values along rays, in rows or in one list."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Places along rays.

    ``vals`` are rows [..., n_samples], one per ray, and nothing else is needed; or one list [N] of all rays, with
    ``packed_info`` or ``ray_indices``.
    """

    vals: Tensor
    packed_info: Tensor | None = None  # [n_rays, 2] int64, begin and count of each ray's entries
    ray_indices: Tensor | None = None  # [N] int64
    is_valid: Tensor | None = None  # [N] bool, where room was left for more samples than there are

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Edges of intervals along rays, which may touch (an edge of both) or leave gaps.

    ``vals`` are rows [..., n_edges] of touching intervals; or one list [N] of all rays, with ``packed_info`` or
    ``ray_indices``, where ``is_left`` and ``is_right`` say what begins or ends at an edge.
    """

    vals: Tensor
    packed_info: Tensor | None = None  # [n_rays, 2] int64, begin and count of each ray's entries
    ray_indices: Tensor | None = None  # [N] int64
    is_left: Tensor | None = None  # [N] bool
    is_right: Tensor | None = None  # [N] bool

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.vals.device
