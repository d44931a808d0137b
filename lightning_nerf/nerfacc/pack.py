"""``nerfacc.pack``: where the samples of each ray lie in one list."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import check_ray_indices, check_tensor
from lightning_nerf.nerfacc._rays import in_range
from lightning_nerf.nerfacc.errors import argument_errors


@argument_errors
@torch.no_grad()
def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """Start and count of each ray's samples in a list that is sorted by ray.

    Args:
        ray_indices: [N] int64 or int32, in [0, n_rays), never falling (only the counts are read).
        n_rays: R. None: the greatest index and one more (on CUDA the host waits for it), 0 for an empty list.

    Returns:
        packed_info [R, 2] int64. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape or dtype; on a CPU also an index of no ray, which is left out on CUDA.

    >>> nerfacc.pack_info(torch.tensor([0, 0, 2, 2, 2]), n_rays=3)
    tensor([[0, 2],
            [2, 0],
            [2, 3]])
    """
    check_tensor("ray_indices", ray_indices, ("N",), (torch.int64, torch.int32))
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if len(ray_indices) else 0
    check_ray_indices(ray_indices, n_rays)
    counts = ray_indices.new_zeros(n_rays, dtype=torch.int64)
    counts.index_add_(0, *in_range(ray_indices, n_rays, counts.new_ones(1).expand(len(ray_indices))))
    return torch.stack([counts.cumsum(0) - counts, counts], 1)
