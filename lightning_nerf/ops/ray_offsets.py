"""From the ray of each sample to where each ray's samples begin."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.ops import library


def ray_offsets(ray_indices: Tensor, n_rays: int) -> Tensor:
    """CSR offsets of samples that are sorted by ray.

    Args:
        ray_indices: [N] int64 or int32, never falling, each in [0, n_rays); N < 2^31.
        n_rays: R, 0 to 2^31 - 2; 0 only where there are no samples.

    Returns:
        [R + 1] int32: ray r owns samples ``offsets[r]`` to ``offsets[r + 1]``. Not differentiable, no synchronization.

    Raises:
        ValueError: also, on a CPU, where the indices fall or leave [0, n_rays). On CUDA that is not looked at: sorted
            indices of n_rays or more belong to no ray (offsets end in front of them) and negative ones count as 0; indices
            that fall give offsets in [0, N] of no further meaning, with which ``composite`` stays inside its memory.
    """
    check_tensor("ray_indices", ray_indices, ("N",), (torch.int64, torch.int32))
    n = ray_indices.shape[0]
    if not 0 <= n_rays < 2**31 - 1:
        raise BadArgument(f"n_rays: expected 0 <= n_rays < 2**31 - 1, got {n_rays}")
    if n_rays == 0 and n > 0:
        raise BadArgument(f"n_rays: expected at least 1 for {n} samples, got 0")
    if ray_indices.device.type == "cpu" and n > 0 and not torch.compiler.is_compiling():
        first, last = int(ray_indices[0]), int(ray_indices[-1])
        if bool((ray_indices[1:] < ray_indices[:-1]).any()):
            raise BadArgument(
                "ray_indices: expected indices that never fall; sort the samples first, by ray_indices.argsort(stable=True)"
            )
        if first < 0 or last >= n_rays:
            raise BadArgument(f"ray_indices: expected indices in [0, {n_rays}), got {first} to {last}")
    return torch.ops.lightning_nerf.ray_offsets(ray_indices.contiguous(), n_rays)


def reference(ray_indices: Tensor, n_rays: int) -> Tensor:
    rays = torch.arange(n_rays + 1, device=ray_indices.device, dtype=ray_indices.dtype)
    offsets = torch.searchsorted(ray_indices, rays).to(torch.int32)
    offsets[0] = 0
    return offsets


library.define(
    "ray_offsets",
    "(Tensor ray_indices, int n_rays) -> Tensor",
    reference,
    lambda ray_indices, n_rays: ray_indices.new_empty(n_rays + 1, dtype=torch.int32),
)
