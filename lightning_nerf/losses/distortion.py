"""A loss against light that is spread along a ray: fog, and floaters in front of cameras."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.losses.base import Loss
from lightning_nerf.ops.distortion import distortion
from lightning_nerf.ops.rounds import round_counting
from lightning_nerf.types import MeasuredField, Step


class Distortion(Loss):
    r"""How far apart the light of a ray lies, mean over rays: it draws weights together into one thin surface.

    .. math:: \frac1R \sum_r \Bigl( \sum_{i,j} w_i w_j |m_i - m_j| + \tfrac13 \sum_i w_i^2 \delta_i \Bigr)

    with the middles :math:`m_i` and lengths :math:`\delta_i` of the samples. Places are measured in the estimator's
    spacing from 0 at near to 1 at far where it has one (:class:`Proposal`), else in thirds of the box's longest side.
    Differentiable in the weights, hence in densities.

    >>> from lightning_nerf import Distortion, InstantNGPField, NeRFModule, OccupancyGrid, Photometric
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(), Distortion(weight=1e-3)])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'distortion']

    Args:
        weight, name: see :class:`Loss`; nerfacto takes 0.002, mip-NeRF 360 0.01.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 15.
    """

    needs_weights = True

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        placement, weights, counts = step.placement, step.render.weights, step.counts
        if weights is None:
            raise BadArgument(f"step.render.weights: the loss {self.name!r} needs them, got None")
        samples = placement.samples
        if placement.edges is not None:
            k, n = len(placement.edges), placement.edges.shape[1] - 1
            each = distortion(weights[: k * n].view(k, n), placement.edges[:, :-1], placement.edges[:, 1:])
            counting = round_counting(counts, samples.ray_indices, samples.offsets, k, n)
        else:
            unit = 1 / step.field.unit_length if isinstance(step.field, MeasuredField) else 1.0
            each = unit * distortion(weights, samples.t_starts, samples.t_ends, offsets=samples.offsets)
            counting = counts
        return each.where(counting, each.new_zeros(())).sum() / counts.sum().clamp(min=1)
