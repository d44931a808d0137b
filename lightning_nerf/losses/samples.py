"""Helpers of losses on single samples: which samples count, and times a little earlier or later."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.capabilities import has
from lightning_nerf.checks import BadArgument
from lightning_nerf.losses.base import Loss
from lightning_nerf.ops.sample_points import per_sample, sample_points
from lightning_nerf.types import NoisyField, PackedSamples, Rays, SampledField, Step


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


def densities_at_both_times(field: SampledField, step: Step, later: Rays) -> tuple[Tensor, Tensor]:
    """Densities [N] of a step's samples, and of the same samples on rays of other times; both without noise.

    The difference of two draws of noise would hide that of the times.
    """
    samples = step.placement.samples
    if isinstance(field, NoisyField) and field.is_noisy:
        return _quiet_densities(field, step.batch.rays, samples), _quiet_densities(field, later, samples)
    return step.output.density, field.query(later, samples).values


def _quiet_densities(field: NoisyField, rays: Rays, samples: PackedSamples) -> Tensor:
    positions, _, times = sample_points(rays, samples)
    wanted: dict[str, Tensor] = {}
    if "times" in field.wants and times is not None:
        wanted["times"] = times
    if "footprints" in field.wants and rays.footprint is not None:
        wanted["footprints"] = per_sample(rays.footprint, samples) * (0.5 * (samples.t_starts + samples.t_ends))
    if has(field.density, "counted"):
        wanted["count"] = samples.offsets[-1:]
    return field.density(positions, **wanted).float()


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
