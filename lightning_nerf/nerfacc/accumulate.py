"""Sums over the samples of each ray."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_ray_indices, check_same_device, check_tensor
from lightning_nerf.nerfacc._rays import in_range
from lightning_nerf.nerfacc.errors import argument_errors

_INDICES = (torch.int64, torch.int32)


@argument_errors
def accumulate_along_rays(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Sum ``weights * values`` over each ray's samples, or the weights alone.

    Args:
        weights: [N] packed or [..., S] batched.
        values: [N, D] or [..., S, D]; None: 1, so that D = 1.
        ray_indices: [N] int64 or int32, in any order, in [0, n_rays); None: batched samples. An index of no ray is an error
            on a CPU. On CUDA, where looking at it would wait for the device, its sample is left out.
        n_rays: R, with ray_indices.

    Returns:
        [R, D], or [..., D].

    Differentiable, any number of times, in weights and values.

    Raises:
        NerfAccArgument: an argument has a wrong shape, dtype or device, or n_rays is missing.

    >>> weights, ray_indices = torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0, 0, 2])
    >>> nerfacc.accumulate_along_rays(weights, ray_indices=ray_indices, n_rays=3)
    tensor([[0.7500],
            [0.0000],
            [1.0000]])
    """
    source = _weighted(weights, values)
    if ray_indices is None:
        return source.sum(dim=-2)
    if n_rays is None:
        raise BadArgument("n_rays: expected a number with ray_indices, got None")
    _check_packed(weights, ray_indices)
    check_ray_indices(ray_indices, n_rays)
    return source.new_zeros(n_rays, source.shape[-1]).index_add(0, *in_range(ray_indices, n_rays, source))


@argument_errors
def accumulate_along_rays_(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Add :func:`accumulate_along_rays` to ``outputs`` [R, D] in place.

    Args:
        weights: [N] packed or [..., S] batched.
        values: [N, D] or [..., S, D]; None: 1, so that D = 1.
        ray_indices: [N] int64 or int32, in any order, in [0, R); None: batched samples.
        outputs: [R, D], or [..., D] with batched samples, floats.

    Raises:
        NerfAccArgument: an argument has a wrong shape, dtype or device, or outputs are missing.

    >>> outputs = torch.ones(2, 1)
    >>> nerfacc.volrend.accumulate_along_rays_(torch.tensor([0.5, 0.25]), None, torch.tensor([1, 1]), outputs)
    >>> outputs
    tensor([[1.0000],
            [1.7500]])
    """
    source = _weighted(weights, values)
    if outputs is None:
        raise BadArgument("outputs: expected a tensor, got None")
    check_same_device(weights=weights, outputs=outputs)
    if ray_indices is None:
        check_tensor("outputs", outputs, (*source.shape[:-2], source.shape[-1]), FLOATS)
        outputs.add_(source.sum(dim=-2))
        return
    _check_packed(weights, ray_indices)
    check_tensor("outputs", outputs, ("R", source.shape[-1]), FLOATS)
    if len(outputs) == 0 and len(ray_indices) > 0:
        raise BadArgument(f"outputs: expected a row for each ray of {len(ray_indices)} samples, got none")
    check_ray_indices(ray_indices, len(outputs))
    outputs.index_add_(0, *in_range(ray_indices, len(outputs), source.to(outputs.dtype)))


def _weighted(weights: Tensor, values: Tensor | None) -> Tensor:
    if weights.ndim == 0 or weights.is_complex():
        raise BadArgument(f"weights: expected real numbers [N] or [..., S], got {weights.dtype} of {list(weights.shape)}")
    if values is None:
        return weights[..., None]
    check_same_device(weights=weights, values=values)
    if values.is_complex():
        raise BadArgument(f"values: expected real numbers, got {values.dtype}")
    if values.shape[:-1] != weights.shape or values.ndim != weights.ndim + 1:
        raise BadArgument(f"values: expected shape {[*weights.shape, 'D']}, got {list(values.shape)}")
    return weights[..., None] * values


def _check_packed(weights: Tensor, ray_indices: Tensor) -> None:
    check_tensor("weights", weights, ("N",), weights.dtype)
    check_tensor("ray_indices", ray_indices, (weights.shape[0],), _INDICES)
    check_same_device(weights=weights, ray_indices=ray_indices)
