"""Where the segments of a packed list lie, and sums along them: what the references of the ops by segment share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor


def check_packed_info(name: str, packed_info: Tensor, n: int) -> None:
    """[R, 2] int64, begin and count. Their values are looked at on a CPU only: elsewhere that would synchronize."""
    check_tensor(name, packed_info, ("R", 2), torch.int64)
    if packed_info.device.type != "cpu" or packed_info.shape[0] == 0:
        return
    begins, counts = packed_info.unbind(1)
    if (begins[1:] < (begins + counts)[:-1]).any():  # not in order, or empty ones lie within others
        packed_info = packed_info[counts != 0]
        begins, counts = packed_info[packed_info[:, 0].argsort()].unbind(1)
    ends = begins + counts
    if ((counts < 0) | (counts > 0) & ((begins < 0) | (ends > n))).any():
        raise BadArgument(f"{name}: expected begins and counts of segments within {n} entries, got others")
    if (ends[:-1] > begins[1:]).any():
        raise BadArgument(f"{name}: expected segments that do not overlap, got some that do")


def owners(n: int, packed_info: Tensor) -> Tensor:
    """The segment of each of n entries [n] int64, -1 where there is none."""
    begins, counts = packed_info.unbind(1)
    # Sorted by their ends, an entry's segment is the first that ends behind it. Empty ones come first and own nothing.
    ends, order = torch.where(counts > 0, begins + counts, -1).sort()
    entries = torch.arange(n, device=packed_info.device)
    if packed_info.shape[0] == 0:
        return entries.fill_(-1)
    place = torch.searchsorted(ends, entries, right=True)
    owner = order[place.clamp(max=len(order) - 1)]
    return torch.where((place < len(order)) & (entries >= begins[owner]), owner, -1)


def ranks(n: int, segments: Tensor, *, reverse: bool) -> Tensor:
    """Each entry's place within its segment [n] int64, counted from the end if ``reverse``; -1 where there is no segment.

    ``segments``: offsets [R + 1] int32, packed_info [R, 2] int64 or keys [n] int64.
    """
    entries = torch.arange(n, device=segments.device)
    if segments.ndim == 1 and segments.dtype == torch.int64:
        keys = segments.flip(0) if reverse else segments
        begins = torch.ones(n, dtype=torch.bool, device=keys.device)
        begins[1:] = keys[1:] != keys[:-1]
        rank = entries - torch.where(begins, entries, 0).cummax(0).values
        return rank.flip(0) if reverse else rank
    begins, ends = (segments[:-1], segments[1:]) if segments.ndim == 1 else (segments[:, 0], segments.sum(1))
    if len(begins) == 0:
        return entries.fill_(-1)
    begins, ends = begins.long().clamp(0, n), ends.long().clamp(0, n)
    owner = owners(n, torch.stack([begins, ends - begins], 1))
    rank = ends[owner] - 1 - entries if reverse else entries - begins[owner]
    return torch.where(owner >= 0, rank, -1)


def exclusive_sum(values: Tensor, owner: Tensor, offsets: Tensor) -> Tensor:
    """Sum of the earlier values of the same ray; a global cumulative sum, so of float64 values."""
    before = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return before[:-1] - before[offsets.long()[owner]]
