"""From counts per ray to places in one packed list."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.ops import library

MAX_COUNT = 2**31 - 1  # a count that stands for itself and all above: such a ray never fits


def pack(counts: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Offsets of rays in a packed list of at most ``capacity`` samples; no host synchronization.

    Rays are packed in their order, whole or not at all. From the first one that does not fit on, none is kept, not even
    smaller or empty ones: which rays are kept depends on the counts of those before them only.

    Args:
        counts: [R] int32, >= 0; 2^31 - 1 means "that many or more" and never fits.
        capacity: 0 to 2^31 - 1. None: the largest, for an exact list: the caller reads its size, ``offsets[-1]``, and is
            to look whether all rays are kept (each of the two is a host synchronization on CUDA).

    Returns:
        ``(offsets [R + 1] int32, kept [R] bool)``: ray r owns the entries ``offsets[r]`` to ``offsets[r + 1]``; none, where
        it is not kept.
    """
    check_tensor("counts", counts, ("R",), torch.int32)
    capacity = MAX_COUNT if capacity is None else capacity
    check_capacity(capacity)
    return torch.ops.lightning_nerf.pack_offsets(counts.contiguous(), capacity)


def check_capacity(capacity: int) -> None:
    """A capacity as :func:`pack` takes it, or a ValueError."""
    if not 0 <= capacity <= MAX_COUNT:
        raise BadArgument(f"capacity: expected 0 <= capacity < 2**31, got {capacity}")


def reference(counts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    sums = torch.where(counts == MAX_COUNT, 2**32, counts.to(torch.int64)).cumsum(0)
    kept = sums <= capacity
    totals = torch.where(kept, sums, 0).cummax(0).values if len(sums) else sums
    return torch.cat([totals.new_zeros(1), totals]).to(torch.int32), kept


def fake(counts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    return counts.new_empty(counts.shape[0] + 1), torch.empty_like(counts, dtype=torch.bool)


library.define("pack_offsets", "(Tensor counts, int capacity) -> (Tensor offsets, Tensor kept)", reference, fake)
