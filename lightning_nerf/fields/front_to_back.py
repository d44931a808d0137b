"""Densities from the front to the back of each ray, without those behind what is opaque."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_nerf.ops.visibility import ALL, prune_from
from lightning_nerf.types import PackedSamples


def front_to_back(
    samples: PackedSamples,
    densities_of: Callable[[PackedSamples], Tensor],
    early_stop_eps: float,
    ends: Sequence[int] = (8, 20),
) -> Tensor:
    """Densities [N] of N samples, asked for in rounds: rays of which less light is left drop out after each.

    The first round takes each ray's samples before the first of ``ends``, the next those up to the second, the last all
    that remain. Where nothing was asked the density is 0. On CUDA nothing waits for the device: each round has the capacity
    of all samples, and ``densities_of`` should do no work for what lies behind ``offsets[-1]``.

    Args:
        samples: N samples of R rays.
        densities_of: densities [M] of M of these samples; called once for each round.
        early_stop_eps: a ray drops out when less light than this is left.
        ends: rising numbers of samples.
    """
    n = len(samples.t_starts)
    capacity = n if samples.t_starts.is_cuda else None
    found = samples.t_starts.new_zeros(n + 1)  # the last takes what is behind a round's end
    for window in zip((0, *ends), (*ends, ALL[1]), strict=True):
        chosen, sources = prune_from(found[:n], samples, early_stop_eps=early_stop_eps, window=window, capacity=capacity)
        places = torch.where(torch.arange(len(sources), device=sources.device) < chosen.offsets[-1], sources, n)
        found = found.scatter(0, places.long(), densities_of(chosen).float())
    return found[:n]
