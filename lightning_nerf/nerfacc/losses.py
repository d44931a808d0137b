"""``nerfacc.losses``, as on NerfAcc's main branch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.argument_types import names_types
from lightning_nerf.checks import FLOATS, check_ray_indices, check_same_device, check_tensor
from lightning_nerf.nerfacc._rays import in_range
from lightning_nerf.ops.scan import segmented_sum


@names_types
def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """How far the weight along each ray is spread, a regulariser against floaters and background collapse.

    With m the middles of the intervals and delta their lengths, each ray's loss is

        sum over i, j of w_i w_j |m_i - m_j|  +  1/3 sum over i of w_i^2 delta_i

    The first sum is taken gap by gap, ``2 (m_{i+1} - m_i) A_i B_i`` with A the weight up to and B that beyond the gap:
    terms of one sign, where a difference of two large sums would cancel.

    Args:
        weights, t_starts, t_ends: [N], samples ascending along each ray.
        ray_indices: [N] int64, in [0, n_rays), a ray's samples next to each other.
        n_rays: number of rays.

    Returns:
        [n_rays, 1], 0 for a ray without samples; float32, or float64 if an argument is. Differentiable in weights,
        t_starts and t_ends; nothing is synchronised.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 15.
    """
    check_tensor("weights", weights, ("N",), FLOATS)
    n = weights.shape[0]
    check_tensor("t_starts", t_starts, (n,), FLOATS)
    check_tensor("t_ends", t_ends, (n,), FLOATS)
    check_tensor("ray_indices", ray_indices, (n,), (torch.int64, torch.int32))
    check_same_device(weights=weights, t_starts=t_starts, t_ends=t_ends, ray_indices=ray_indices)
    check_ray_indices(ray_indices, n_rays)
    weights = weights if weights.dtype == torch.float64 else weights.float()
    loss = weights.square() * (t_ends - t_starts) / 3
    if n > 1:
        middles = (t_starts + t_ends) / 2
        gaps = torch.where(ray_indices[1:] == ray_indices[:-1], middles[1:] - middles[:-1], 0.0)
        up_to = segmented_sum(weights, ray_indices=ray_indices)[:-1]
        beyond = segmented_sum(weights, ray_indices=ray_indices, exclusive=True, reverse=True)[:-1]
        loss = torch.cat([loss[:-1] + 2 * gaps * up_to * beyond, loss[-1:]])
    return loss.new_zeros(n_rays).index_add(0, *in_range(ray_indices, n_rays, loss))[:, None]
