"""A loss that keeps hashed and factorized encodings smooth where there are samples."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.checks import BadType, check_integer, check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.samples import counting_samples, field_and_key, mean_where, shifted_times
from lightning_nerf.ops.random import STREAM_PERTURBATION, random_uniform
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.types import Step, has_encoding


class PerturbationTV(Loss):
    r"""Total variation of a field's encoding at random samples, between each and a point near it in space and time.

    .. math:: \frac1{nF} \sum_i \bigl| f(x_i, t_i) - f(x_i + e_i, t_i + \epsilon_i) \bigr|_1

    over samples of rays that count, with F features f and uniform :math:`e_i, \epsilon_i`. The sum over a grid's rows would
    not do: rows of a hash table have no neighbors. The field states ``encoded(positions, times)``, see
    :class:`~lightning_nerf.types.EncodedField`; :class:`InstantNGPField` and :class:`SpaceTimeField` do, and a
    :class:`DeformedField` around one that does.

    >>> from lightning_nerf import InstantNGPField, NeRFModule, OccupancyGrid, PerturbationTV, Photometric
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(), PerturbationTV(weight=0.1)])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'perturbation_tv']

    Args:
        max_offset: largest offset along each axis, in thirds of the box's longest side; >= 0.
        max_shift: largest shift in time, as a share of the times that the samples looked at span; in [0, 1].
        n_points: samples of a step, drawn with replacement, that are looked at; >= 1.
        weight, name: see :class:`Loss`.

    Raises:
        BadType: in a step, where the field states no encoding.

    Source: Xu, Fan, Yang, Xu, "Grid4D: 4D decomposed hash encoding for high-fidelity dynamic Gaussian splatting", NeurIPS
    2024, the smooth regularization of section 4.
    """

    def __init__(
        self,
        max_offset: float = 0.01,
        max_shift: float = 0.01,
        n_points: int = 2**14,
        weight: float = 1.0,
        name: str | None = "perturbation_tv",
    ) -> None:
        super().__init__(weight, name)
        check_number("max_offset", max_offset, "[0, inf)")
        check_number("max_shift", max_shift, "[0, 1]")
        check_integer("n_points", n_points, 1, 2**31 - 1)
        self.max_offset, self.max_shift, self.n_points = max_offset, max_shift, n_points

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        field, key = field_and_key(self, step)
        if not has_encoding(field):
            raise BadType(f"field: the loss {self.name!r} needs one with encoded(positions, times), see EncodedField")
        positions, _, times = sample_points(step.batch.rays, step.placement.samples)
        counts = counting_samples(step)
        if len(positions) == 0:
            return field.encoded(positions, times).sum()  # 0, and a gradient's way to the encoding
        uniform = random_uniform(key, STREAM_PERTURBATION, self.n_points, 5)
        n = step.placement.samples.offsets[-1].clamp(min=1)
        chosen = (uniform[:, 4].double() * n).long()  # float32 has fewer values than a step may have samples
        positions, counts = positions[chosen], counts[chosen]
        near = positions + self.max_offset * field.unit_length * (2 * uniform[:, :3] - 1)
        if times is None:
            here, there = field.encoded(positions), field.encoded(near)
        else:
            now = times[chosen]
            here = field.encoded(positions, now)
            there = field.encoded(near, shifted_times(now, self.max_shift, uniform[:, 3], counts))
        return mean_where((here.float() - there.float()).abs().mean(-1), counts)
