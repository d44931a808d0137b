"""Samples cut into equal parts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_nerf.types import PackedSamples


def subdivided(samples: PackedSamples, parts: int, capacity: int | None = None) -> PackedSamples:
    """Each of N samples as ``parts`` samples of equal length, in the same order: ``parts * N`` of them, or ``capacity``.

    ``capacity``: length of the result, at least ``parts * N``; the rest is tail. A cut has one value for both of its sides.

    >>> import torch
    >>> from lightning_nerf import PackedSamples
    >>> from lightning_nerf.estimators.subdivided import subdivided
    >>> one = torch.ones(1), torch.tensor([2.0]), torch.zeros(1, dtype=torch.int32)
    >>> samples = PackedSamples(*one, torch.tensor([0, 1], dtype=torch.int32), kept=torch.ones(1, dtype=torch.bool))
    >>> subdivided(samples, 2)[:2]
    (tensor([1.0000, 1.5000]), tensor([1.5000, 2.0000]))
    """
    t_starts, t_ends, ray_indices, offsets, kept = samples
    share = torch.arange(parts + 1, device=t_starts.device, dtype=t_starts.dtype) / parts
    cuts = torch.lerp(t_starts[:, None], t_ends[:, None], share)  # exact at both ends
    lists = cuts[:, :-1].flatten(), cuts[:, 1:].flatten(), ray_indices.repeat_interleave(parts)
    tail = 0 if capacity is None else capacity - len(lists[0])
    t_starts, t_ends, ray_indices = (F.pad(values, (0, tail)) if tail else values for values in lists)
    return PackedSamples(t_starts, t_ends, ray_indices, offsets * parts, kept)
