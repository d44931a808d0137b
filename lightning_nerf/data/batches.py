"""Batches of rays: checks of a user's own batches, and the true colors of rays."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import check_instance, check_same_device, check_tensor
from lightning_nerf.types import RayBatch, Rays

_COLORS = (torch.float32, torch.bfloat16, torch.float16)
_OPTIONAL = ("batch.rays.times", "batch.rays.cameras", "batch.rays.footprint", "batch.alpha", "batch.mask", "batch.depth")
_VECTORS = ("batch.rays.origins", "batch.rays.directions", "batch.rgb")


def checked_batch(batch: object) -> RayBatch:
    """The RayBatch of R rays that a user's own loader gives a training step, after checks.

    Rays whose direction has no length that float32 can square are inactive: they would stand still, up to ``far``, in one
    cell, and fill all memory with samples of it. Rays that the mask leaves out are inactive, too; a time that is not finite
    becomes 0, and the mask of the result leaves its ray out.

    Raises:
        BadType, BadArgument: naming the tensor, as in ``batch.rays.near``.
    """
    check_instance("batch", batch, RayBatch)
    assert isinstance(batch, RayBatch)
    check_instance("batch.rays", batch.rays, Rays)
    check_tensor("batch.rays.origins", batch.rays.origins, ("R", 3), torch.float32)
    n = len(batch.rays.origins)
    tensors: dict[str, Tensor | None] = {f"batch.rays.{name}": tensor for name, tensor in batch.rays._asdict().items()}
    tensors |= {"batch.rgb": batch.rgb, "batch.alpha": batch.alpha, "batch.mask": batch.mask, "batch.depth": batch.depth}
    for name, tensor in tensors.items():
        if tensor is not None or name not in _OPTIONAL:
            check_tensor(name, tensor, (n, 3) if name in _VECTORS else (n,), _dtypes(name))
    check_same_device(**tensors)
    rays, limits = batch.rays, torch.finfo(torch.float32)
    squared = rays.directions.square().sum(-1)
    active, mask = (squared >= limits.tiny) & (squared <= limits.max), batch.mask
    if rays.times is not None:
        timed = rays.times.isfinite()
        mask = timed if mask is None else mask & timed
        rays = rays._replace(times=torch.where(timed, rays.times, 0.0))  # the tail of samples reads ray 0's
    if mask is not None:
        active = active & mask
    return batch._replace(rays=rays._replace(far=torch.where(active, rays.far, rays.near)), mask=mask)


def truth(batch: RayBatch, background: Tensor) -> Tensor:
    """The batch's colors on a background: ``alpha * rgb + (1 - alpha) * background``, or ``rgb`` where all is opaque.

    ``background``: [3] or [R, 3]. A ray that hits nothing is the background exactly.
    """
    if batch.alpha is None:
        return batch.rgb
    # lerp is exact at both ends: a transparent pixel is its background, an opaque one its color.
    return torch.lerp(background.expand_as(batch.rgb), batch.rgb, batch.alpha[:, None])


def _dtypes(name: str) -> torch.dtype | tuple[torch.dtype, ...]:
    if name == "batch.mask":
        return torch.bool
    if name == "batch.rays.cameras":
        return torch.int64
    return torch.float32 if name.startswith("batch.rays") or name == "batch.depth" else _COLORS
