"""``nerfacc.losses``, as on NerfAcc's main branch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, check_ray_indices, check_same_device, check_tensor
from lightning_nerf.nerfacc._rays import in_range
from lightning_nerf.nerfacc.errors import argument_errors
from lightning_nerf.ops.scan import segmented_sum


@argument_errors
def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Compute how far the weight along each ray is spread: the distortion loss, against floaters.

    With m the middles of the intervals and delta their lengths, the loss of a ray is

        sum over i, j of w_i w_j |m_i - m_j|  +  1/3 sum over i of w_i^2 delta_i

    The first sum is taken gap by gap, ``2 (m_{i+1} - m_i) A_i B_i`` with A the weight up to and B that beyond the gap:
    terms of one sign, where a difference of two large sums would cancel.

    Args:
        weights: [N] floats, of samples that ascend along each ray.
        t_starts, t_ends: [N] floats, where the samples begin and end.
        ray_indices: [N] int64 or int32, in [0, n_rays), the samples of a ray next to each other.
        n_rays: R.

    Returns:
        [R, 1], 0 for a ray without samples; float32, or float64 where an argument is. Nothing waits for the device.

    Differentiable, any number of times, in weights, t_starts and t_ends.

    Raises:
        NerfAccArgument: wrong shape, dtype or device; on a CPU also an index of no ray, which is left out on CUDA.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 15.

    >>> t_starts, t_ends = torch.tensor([0.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 2.0, 1.0, 4.0])
    >>> nerfacc.distortion(torch.full((4,), 0.5), t_starts, t_ends, torch.tensor([0, 0, 1, 1]), n_rays=2)
    tensor([[0.6667],
            [1.6667]])
    """
    check_tensor("weights", weights, ("N",), FLOATS)
    n = weights.shape[0]
    check_tensor("t_starts", t_starts, (n,), FLOATS)
    check_tensor("t_ends", t_ends, (n,), FLOATS)
    check_tensor("ray_indices", ray_indices, (n,), (torch.int64, torch.int32))
    check_same_device(weights=weights, t_starts=t_starts, t_ends=t_ends, ray_indices=ray_indices)
    check_ray_indices(ray_indices, n_rays)
    weights, t_starts, t_ends = (t if t.dtype is torch.float64 else t.float() for t in (weights, t_starts, t_ends))
    loss = weights.square() * (t_ends - t_starts) / 3
    if n > 1:
        middles = (t_starts + t_ends) / 2
        gaps = torch.where(ray_indices[1:] == ray_indices[:-1], middles[1:] - middles[:-1], 0.0)
        up_to = segmented_sum(weights, ray_indices=ray_indices)[:-1]
        beyond = segmented_sum(weights, ray_indices=ray_indices, exclusive=True, reverse=True)[:-1]
        loss = torch.cat([loss[:-1] + 2 * gaps * up_to * beyond, loss[-1:]])
    return loss.new_zeros(n_rays).index_add(0, *in_range(ray_indices, n_rays, loss))[:, None]
