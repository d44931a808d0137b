"""Plain density functions as queries."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_nerf.checks import check_returned
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.types import Densities, PackedSamples, Query, Rays

DensityFn = Callable[..., Tensor]
"""``density_fn(positions [N, 3])``, or ``density_fn(positions, times [N])`` where there are times, gives densities [N]."""


def as_query(density_fn: DensityFn) -> Query:
    """A function of positions, and of times where the rays have them, as a :class:`~lightning_nerf.types.Query`.

    >>> import torch
    >>> from lightning_nerf import OccupancyGrid, Rays, as_query
    >>> grid = OccupancyGrid(resolution=8, step_size=0.5).bind([-1, -1, -1, 1, 1, 1])
    >>> rays = Rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.full((1,), 9.0))
    >>> placement = grid.place(rays, as_query(lambda positions: torch.full((len(positions),), 100.0)))
    >>> placement.samples.t_starts  # nothing is seen behind the first
    tensor([1.])
    """

    def query(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        positions, _, times = sample_points(rays, samples)
        return Densities(densities(density_fn, positions, times))

    return query


def densities(density_fn: DensityFn, positions: Tensor, times: Tensor | None = None) -> Tensor:
    """The values of a density function at points, checked, as float32."""
    values = density_fn(positions) if times is None else density_fn(positions, times)
    check_returned("density_fn", values, (positions.shape[0],), device=positions.device)
    return values.float()
