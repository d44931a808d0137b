"""Losses that keep a moving scene's motion small and steady."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType, check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.samples import (
    counting_samples,
    densities_at_both_times,
    field_and_key,
    mean_where,
    shifted_times,
    times_of,
)
from lightning_nerf.ops.random import STREAM_TIME_SHIFTS, random_uniform
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.types import Step, WarpedField

SMOOTH = ("opacity", "offset")
_LEAST_LIGHT = 1e-6  # least sum of weights to divide by


class WarpSize(Loss):
    r"""Mean squared offset of a warp over visible samples: points that need not move stay where they are.

    .. math:: \frac{\sum_i w_i \|o_i\|^2}{\sum_i w_i}

    over the samples of rays that count. :math:`w_i` are the render's weights, without gradient: the loss moves points, and
    makes none transparent. Offsets :math:`o_i` are ``step.output.per_sample["offset"]``, as :class:`DeformedField` gives
    them, in thirds of the box's longest side.

    >>> from lightning_nerf import DeformedField, NeRFModule, OccupancyGrid, Photometric, VanillaField, WarpSize
    >>> field = DeformedField(VanillaField(width=64, hidden_layers=2, skip=None))
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(), WarpSize(weight=1e-3)])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'warp_size']

    Args:
        weight, name: see :class:`Loss`.

    Raises:
        BadType: in a step, where the field gives no offsets.

    Source: the norm of offsets of Tretschk et al., "Non-rigid neural radiance fields", ICCV 2021, section 3.4.
    """

    needs_weights = True

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        offsets, weights = step.output.per_sample.get("offset"), step.render.weights
        if offsets is None:
            raise BadType(f"field: the loss {self.name!r} needs one that moves points, such as DeformedField")
        if weights is None:
            raise BadArgument(f"step.render.weights: the loss {self.name!r} needs them, got None")
        seen = torch.where(counting_samples(step), weights.detach(), 0.0)
        squares = torch.where(seen > 0, offsets.square().sum(-1), 0.0)
        return (seen * squares).sum() / seen.sum().clamp(min=_LEAST_LIGHT)


class TemporalSmoothness(Loss):
    r"""Mean squared change of samples from their time to one a little earlier or later.

    .. math:: \frac1n \sum_i \bigl(f(x_i, t_i) - f(x_i, t_i + \delta_{r(i)})\bigr)^2

    over the samples of rays that count; each ray has its own shift. f is the sample's opacity,
    :math:`1 - \exp(-\sigma \Delta)`, which any field has, or the offset of a :class:`DeformedField`, in thirds of the box's
    longest side. The density or the warp is evaluated once more, with gradient; the density of a field with noise twice
    more, without the noise.

    >>> from lightning_nerf import TemporalSmoothness
    >>> TemporalSmoothness(weight=0.01, of="offset", max_shift=0.02).max_shift
    0.02

    Args:
        of: "opacity" or "offset".
        max_shift: largest shift, as a share of the times that the step's rays that count span; > 0, <= 1.
        weight, name: see :class:`Loss`.

    Raises:
        BadArgument, BadType: in a step, where rays have no times, or the field no offsets.

    Source: the smoothness in time of Fridovich-Keil et al., "K-Planes", CVPR 2023, section 3.2.1, of the field itself.
    """

    def __init__(self, of: str = "opacity", max_shift: float = 0.02, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if of not in SMOOTH:
            raise BadArgument(f"of: expected one of {', '.join(SMOOTH)}, got {of!r}")
        check_number("max_shift", max_shift, "(0, 1]")
        self.of, self.max_shift = of, max_shift

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        field, key = field_and_key(self, step)
        rays, samples, times = step.batch.rays, step.placement.samples, times_of(self, step)
        uniform = random_uniform(key, STREAM_TIME_SHIFTS, len(times), 1)[:, 0]
        later = rays._replace(times=shifted_times(times, self.max_shift, uniform, step.counts))
        counts = counting_samples(step)
        if self.of == "opacity":
            deltas = samples.t_ends - samples.t_starts
            densities = densities_at_both_times(field, step, later)
            now, then = (-torch.expm1(-torch.where(counts, d, 0.0) * deltas)[:, None] for d in densities)
        else:
            offsets = step.output.per_sample.get("offset")
            if offsets is None or not isinstance(field, WarpedField):
                raise BadType(f"field: the loss {self.name!r} needs one that moves points, such as DeformedField")
            positions, _, shifted = sample_points(later, samples)
            assert shifted is not None
            now, then = offsets, field.offsets(positions, shifted)
        return mean_where((now - then).square().sum(-1), counts)
