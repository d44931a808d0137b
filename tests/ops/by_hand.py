"""Volume rendering as its equations say: a loop over rays and samples in float64, differentiable by autograd alone."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class ByHand(NamedTuple):
    channels: Tensor  # [R, C]
    opacity: Tensor
    depth: Tensor
    n_samples: list[int]
    weights: Tensor  # [N]
    trans: Tensor
    alphas: Tensor


def by_hand(
    absorbers: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    eps: float = 0.0,
    *,
    alphas_given: bool = False,
) -> ByHand:
    """``absorbers`` are densities, or alphas; finite ones, and none that count as void."""
    absorbers, channels, t_starts, t_ends = (a.double() for a in (absorbers, channels, t_starts, t_ends))
    zero, one = absorbers.new_zeros(()), absorbers.new_ones(())
    weights, trans, alphas = ([zero] * len(absorbers) for _ in range(3))
    rays, counts = [], []
    bounds = offsets.tolist()
    for begin, end in itertools.pairwise(bounds):
        light, color, opacity, depth, used = one, torch.zeros_like(channels[:1].sum(0)), zero, zero, 0
        for i in range(begin, end):
            if light < eps:
                break
            used += 1
            alpha = absorbers[i] if alphas_given else 1 - torch.exp(-absorbers[i] * (t_ends[i] - t_starts[i]))
            trans[i], alphas[i], weights[i] = light, alpha, light * alpha
            color = color + weights[i] * channels[i]
            opacity, depth = opacity + weights[i], depth + weights[i] * (t_starts[i] + t_ends[i]) / 2
            light = light * (1 - alpha)
        rays.append(torch.cat([color, opacity[None], depth[None]]))
        counts.append(used)
    table = torch.stack(rays) if rays else channels.new_zeros(0, channels.shape[1] + 2)
    per_sample = (torch.stack(v) if v else absorbers.new_zeros(0) for v in (weights, trans, alphas))
    return ByHand(table[:, :-2], table[:, -2], table[:, -1], counts, *per_sample)
