"""Helpers of losses on single samples: which samples count, and times a little earlier or later."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.losses.base import Loss
from lightning_nerf.types import SampledField, Step


def counting_samples(step: Step) -> Tensor:
    """[N] bool: samples of rays that count; False in the tail."""
    samples = step.placement.samples
    index = torch.arange(len(samples.t_starts), device=samples.t_starts.device)
    if len(step.counts) == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    return (index < samples.offsets[-1]) & step.counts[samples.ray_indices]


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of values [N] where counts [N]; 0 where none does."""
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)


def shifted_times(times: Tensor, most: float, uniform: Tensor, counts: Tensor) -> Tensor:
    """Times [N] that count, moved by up to ``most`` of the range that they span, earlier or later, and kept within it.

    Args:
        times: [N].
        most: largest shift, as a share of the range.
        uniform: [N] numbers in [0, 1).
        counts: [N] bool. Times where it is False stay as they are.
    """
    if len(times) == 0:
        return times
    first = torch.where(counts, times, float("inf")).amin()
    last = torch.where(counts, times, -float("inf")).amax()
    moved = (times + (last - first) * most * (2 * uniform - 1)).clamp(first, last)
    return torch.where(counts, moved, times)


def times_of(loss: Loss, step: Step) -> Tensor:
    """The times [R] of a step's rays."""
    if step.batch.rays.times is None:
        raise BadArgument(f"losses: {loss.name!r} needs rays with times, which these training views do not have")
    return step.batch.rays.times


def field_and_key(loss: Loss, step: Step) -> tuple[SampledField, Tensor]:
    """The field that a loss evaluates once more, and the key of its draws."""
    if step.field is None or step.key is None:
        raise BadArgument(f"step.field, step.key: the loss {loss.name!r} needs both, got None")
    return step.field, step.key
