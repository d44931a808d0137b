"""``nerfacc.scan``: cumulative sums and products along rays.

All four functions take their entries in one of three forms: rows (along the last dimension, any number of dimensions before
it); one list [N] with ``packed_info`` [R, 2], the start and count of each ray's entries, in any order, where entries of no
ray give 0; or one list with ``indices`` [N], where equal neighbors belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_same_device, check_tensor
from lightning_nerf.nerfacc.errors import argument_errors
from lightning_nerf.ops.scan import segmented_product, segmented_sum


@argument_errors
def inclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Sum each entry with those before it in its ray: ``y_i = sum over j <= i of x_j``.

    Args:
        inputs: floats: rows [..., S], or one list [N] with one of the next two.
        packed_info: [R, 2] int64 or int32, start and count of each ray's entries.
        indices: [N] int64 or int32, the ray of each entry; a run of equal indices is a ray.

    Returns:
        The shape and dtype of inputs; 0 for entries of no ray.

    Differentiable, any number of times, in inputs.

    Raises:
        NerfAccArgument: wrong shape, dtype or device, or both packed_info and indices; on a CPU also rays that overlap or
            leave the list.

    >>> nerfacc.inclusive_sum(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), indices=torch.tensor([0, 0, 1, 1, 1]))
    tensor([ 1.,  3.,  3.,  7., 12.])
    """
    if packed_info is None and indices is None:
        return torch.cumsum(inputs, -1)
    return _scan(segmented_sum, inputs, packed_info, indices, exclusive=False)


@argument_errors
def exclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Sum the entries before each entry in its ray: ``y_i = sum over j < i of x_j``, 0 for the first.

    Args, result, derivatives and errors are those of :func:`inclusive_sum`.

    >>> nerfacc.exclusive_sum(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), indices=torch.tensor([0, 0, 1, 1, 1]))
    tensor([0., 1., 0., 3., 7.])
    """
    if packed_info is None and indices is None:
        return torch.cumsum(_shifted(inputs, 0), -1)
    return _scan(segmented_sum, inputs, packed_info, indices, exclusive=True)


@argument_errors
def inclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Multiply each entry with those before it in its ray: ``y_i = product over j <= i of x_j``.

    Args, result, derivatives and errors are those of :func:`inclusive_sum`; the gradient is exact where inputs are 0.

    >>> nerfacc.inclusive_prod(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), indices=torch.tensor([0, 0, 1, 1, 1]))
    tensor([ 1.,  2.,  3., 12., 60.])
    """
    if packed_info is None and indices is None:
        return _row_products(inputs, exclusive=False)
    return _scan(segmented_product, inputs, packed_info, indices, exclusive=False)


@argument_errors
def exclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Multiply the entries before each entry in its ray: ``y_i = product over j < i of x_j``, at first 1.

    Args, result, derivatives and errors are those of :func:`inclusive_sum`; the gradient is exact where inputs are 0.

    >>> nerfacc.exclusive_prod(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), indices=torch.tensor([0, 0, 1, 1, 1]))
    tensor([ 1.,  1.,  1.,  3., 12.])
    """
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
