"""``nerfacc.scan``: cumulative sums and products along rays.

Three forms: rows (along the last dimension, any number of dimensions before it), one list [N] with ``packed_info`` [R, 2]
(begin and count of each ray's entries, in any order; entries of no ray give 0), or one list with ``indices`` [N], where
equal neighbours belong together. Differentiable in the inputs; a product's gradient is exact at zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nerf.argument_types import names_types
from lightning_nerf.checks import FLOATS, BadArgument, check_same_device, check_tensor
from lightning_nerf.ops.scan import segmented_product, segmented_sum


@names_types
def inclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Sum of the entries up to this one."""
    if packed_info is None and indices is None:
        return torch.cumsum(inputs, -1)
    return _scan(segmented_sum, inputs, packed_info, indices, exclusive=False)


@names_types
def exclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Sum of the entries before this one, 0 for the first."""
    if packed_info is None and indices is None:
        return torch.cumsum(_shifted(inputs, 0), -1)
    return _scan(segmented_sum, inputs, packed_info, indices, exclusive=True)


@names_types
def inclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Product of the entries up to this one."""
    if packed_info is None and indices is None:
        return _row_products(inputs, exclusive=False)
    return _scan(segmented_product, inputs, packed_info, indices, exclusive=False)


@names_types
def exclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Product of the entries before this one, 1 for the first."""
    if packed_info is None and indices is None:
        return _row_products(inputs, exclusive=True)
    return _scan(segmented_product, inputs, packed_info, indices, exclusive=True)


def _scan(
    function: Callable[..., Tensor],
    inputs: Tensor,
    packed_info: Tensor | None,
    indices: Tensor | None,
    *,
    exclusive: bool,
) -> Tensor:
    if packed_info is not None and indices is not None:
        raise BadArgument("packed_info, indices: expected at most one of them, got both")
    check_tensor("inputs", inputs, ("N",), FLOATS)
    if indices is not None:
        check_tensor("indices", indices, (inputs.shape[0],), (torch.int64, torch.int32))
    if packed_info is not None:
        check_tensor("packed_info", packed_info, ("n_rays", 2), (torch.int64, torch.int32))
        packed_info = packed_info.long()
    check_same_device(inputs=inputs, packed_info=packed_info, indices=indices)
    return function(inputs, packed_info=packed_info, ray_indices=indices, exclusive=exclusive)


def _shifted(inputs: Tensor, first: float) -> Tensor:
    if inputs.ndim == 0:  # one entry, as torch.cumsum sees it
        return _shifted(inputs[None], first)[0]
    return torch.cat([torch.full_like(inputs[..., :1], first), inputs[..., :-1]], -1)


def _row_products(inputs: Tensor, *, exclusive: bool) -> Tensor:
    """Not ``torch.cumprod`` where the op will do: its backward pass waits for the device, to look for zeros."""
    small = inputs.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not small or inputs.ndim == 0 or not 0 < inputs.numel() < 2**31:
        return torch.cumprod(_shifted(inputs, 1) if exclusive else inputs, -1)
    width = inputs.shape[-1]
    offsets = torch.arange(0, inputs.numel() + 1, width, dtype=torch.int32, device=inputs.device)
    return segmented_product(inputs.reshape(-1), offsets=offsets, exclusive=exclusive).view(inputs.shape)
