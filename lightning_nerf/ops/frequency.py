"""NeRF's positional encoding: sines and cosines of coordinates at doubling frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_integer, check_number, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.transforms import is_transformed

MAX_FREQUENCIES = 64


def frequency(
    x: Tensor, n_frequencies: int, *, include_input: bool = True, scale: float = 1.0, count: Tensor | None = None
) -> Tensor:
    r"""Encode N points of D coordinates: the coordinates, their sines, their cosines.

        out = [x,  sin(2^0 s x), ..., sin(2^(L-1) s x),  cos(2^0 s x), ..., cos(2^(L-1) s x)]

    with L = ``n_frequencies`` and s = ``scale``. Each of the 2L + 1 blocks holds the D coordinates in their order.

    Args:
        x: [N, D] float32, D >= 1. float16 and bfloat16 are converted to float32.
        n_frequencies: 1 to 64.
        include_input: whether x itself comes first.
        scale: a number above 0. 1 is the convention of the authors' code, pi that of the paper.
        count: [] or [1] int32, on x's device: only the first ``count`` rows are encoded. The rows behind are not read, and
            are exactly 0 in the result. None: all rows. Read on the device, without synchronization.

    Returns:
        [N, D * (2 L + include_input)] float32. The angle is the float32 product ``s * x`` times exactly 2^k. Its sine and
        cosine are wrong by at most 2^-22, however large it is.

    Differentiable in x, in reverse mode. Second derivatives are those of :func:`reference`, which serves also where x is
    float64 (the result is float64, too) and under function transforms. Under autocast it stays in float32.

    Source: Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020, eq. 4.
    """
    check_tensor("x", x, ("N", "D"), FLOATS)
    if x.shape[1] == 0:
        raise BadArgument("x: expected at least 1 column, got 0")
    check_integer("n_frequencies", n_frequencies, 1, MAX_FREQUENCIES)
    check_number("scale", scale, "(0, inf)")
    if count is not None:
        check_tensor("count", count, (1,) if count.dim() else (), torch.int32)
        check_same_device(x=x, count=count)
    if x.dtype is torch.float64 or is_transformed():
        return reference(x if x.dtype is torch.float64 else x.float(), n_frequencies, include_input, scale, count)
    return torch.ops.lightning_nerf.frequency(x.float().contiguous(), n_frequencies, include_input, scale, count)


def reference(
    x: Tensor, n_frequencies: int, include_input: bool = True, scale: float = 1.0, count: Tensor | None = None
) -> Tensor:
    used = None if count is None else torch.arange(len(x), device=x.device)[:, None] < count
    if used is not None:
        x = torch.where(used, x, 0.0)  # before any arithmetic: NaN * 0 would reach the gradient
    powers = torch.arange(n_frequencies, device=x.device, dtype=x.dtype).exp2()
    angles = ((x * scale)[:, None, :] * powers[:, None]).flatten(1)
    parts = [angles.sin(), angles.cos()]
    out = torch.cat([x, *parts] if include_input else parts, 1)
    return out if used is None else torch.where(used, out, 0.0)


def reference_backward(
    grad: Tensor, x: Tensor, n_frequencies: int, include_input: bool, scale: float, count: Tensor | None
) -> Tensor:
    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    return torch.func.vjp(lambda p: reference(p, n_frequencies, include_input, scale, count), x)[1](grad)[0]


def _setup_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    x, *ctx.options, count = inputs
    ctx.save_for_backward(x, count)


def _backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    x, count = ctx.saved_tensors
    grad_x = torch.ops.lightning_nerf.frequency_backward(grad.contiguous(), x, *ctx.options, count)
    return grad_x, None, None, None, None


def _setup_second_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    grad, x, *ctx.options, count = inputs
    ctx.save_for_backward(grad, x, count)


def _second_backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    first, x, count = ctx.saved_tensors
    n, include_input, scale = ctx.options
    pullback = torch.func.vjp(lambda g, p: reference_backward(g, p, n, include_input, scale, count), first, x)[1]
    return *pullback(grad), None, None, None, None


library.define(
    "frequency",
    "(Tensor x, int n_frequencies, bool include_input, float scale, Tensor? count) -> Tensor",
    reference,
    lambda x, n_frequencies, include_input, scale, count: x.new_empty(
        (x.shape[0], x.shape[1] * (2 * n_frequencies + include_input))
    ),
)
library.define(
    "frequency_backward",
    "(Tensor grad, Tensor x, int n_frequencies, bool include_input, float scale, Tensor? count) -> Tensor",
    reference_backward,
    lambda grad, x, n_frequencies, include_input, scale, count: torch.empty_like(x),
)
library.differentiable("frequency", _setup_context, _backward)
library.differentiable("frequency_backward", _setup_second_context, _second_backward)
