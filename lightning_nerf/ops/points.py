"""Where packed samples are, what they look along, and when."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.types import PackedSamples, Rays


def sample_points(rays: Rays, samples: PackedSamples) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions at the samples' midpoints, directions, and times where the rays have them.

    .. math:: x_i = o_{r(i)} + \\tfrac{1}{2} (t^{start}_i + t^{end}_i)\\, d_{r(i)}

    Directions are the rays' own, not normalised. In the tail, t = 0 and the ray is ray 0: finite if that ray is. With no
    rays at all, everything is 0. Differentiable in the rays' origins, directions and times.

    Returns:
        positions [N, 3], directions [N, 3], times [N] or None.
    """
    n = samples.t_starts.shape[0]
    if rays.origins.shape[0] == 0:  # a capacity without rays: there is no ray 0 to read
        nowhere = rays.origins.new_zeros(n, 3)
        return nowhere, nowhere.clone(), None if rays.times is None else rays.times.new_zeros(n)
    index = samples.ray_indices
    directions = rays.directions.index_select(0, index)
    middle = (samples.t_starts + samples.t_ends) * 0.5
    positions = rays.origins.index_select(0, index).addcmul(directions, middle[:, None])
    return positions, directions, None if rays.times is None else rays.times.index_select(0, index)
