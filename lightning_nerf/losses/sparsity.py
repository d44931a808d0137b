"""A loss that keeps space empty where no picture says otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import check_integer
from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.samples import field_and_key, mean_where
from lightning_nerf.ops.random import STREAM_SPARSITY, random_uniform
from lightning_nerf.types import PackedSamples, Step

PARTS = 128  # of a ray's length: how thick the fog is taken to be whose opacity counts


class Sparsity(Loss):
    r"""Mean opacity of fog as dense as the field is at random points of the step's rays, one on each, also behind surfaces.

    .. math:: \frac1n \sum_r \bigl(1 - \exp(-\sigma(x_r, t_r) \, (far_r - near_r) / 128)\bigr)

    Regions that no training view sees keep their initial density: they cost samples, and a view from elsewhere sees them.
    Where views do see something, a small weight yields to :class:`Photometric`.

    >>> from lightning_nerf import InstantNGPField, NeRFModule, OccupancyGrid, Photometric, Sparsity
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(), Sparsity(weight=1e-3)])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'sparsity']

    Args:
        n_points: rays of a step, the first ones, that get a point; >= 1.
        weight, name: see :class:`Loss`.

    Differentiable in the field's parameters.

    Source: the sparsity loss of Yu, Li, Tancik, Li, Ng, Kanazawa, "PlenOctrees for real-time rendering of neural radiance
    fields", ICCV 2021, section 4.1, with points on rays in place of points in a box.
    """

    def __init__(self, n_points: int = 2**12, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        check_integer("n_points", n_points, 1, 2**31 - 1)
        self.n_points = n_points

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        field, key = field_and_key(self, step)
        rays = step.batch.rays.map(lambda t: t[: self.n_points])
        counts = step.counts[: self.n_points] & (rays.far > rays.near)
        n = len(counts)
        uniform = random_uniform(key, STREAM_SPARSITY, n, 1)[:, 0]
        length = torch.where(counts, rays.far - rays.near, 0.0)
        t = torch.where(counts, rays.near + uniform * length, 0.0)
        index = torch.arange(n + 1, dtype=torch.int32, device=t.device)
        points = PackedSamples(t, t, index[:n], index, torch.ones_like(counts))
        density = field.at_samples(rays, points).density
        return mean_where(-torch.expm1(-torch.where(counts, density, 0.0) * length / PARTS), counts)
