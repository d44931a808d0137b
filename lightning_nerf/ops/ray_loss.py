"""The photometric loss of rays that count: truth on its background, Huber's function, mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def ray_loss(
    rgb: Tensor,
    target: Tensor,
    *,
    kept: Tensor,
    mask: Tensor | None = None,
    alpha: Tensor | None = None,
    background: Tensor | None = None,
    delta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean Huber loss, mean squared error, and the number of rays that count: ``kept``, and in ``mask`` if there is one.

        truth = alpha * target + (1 - alpha) * background       exact for alpha = 0 and 1; target where alpha is None
        e = rgb - truth
        loss = mean of e^2 / 2 where |e| < delta, else delta (|e| - delta / 2)
        mse = mean of e^2

    Means are over three colors of the rays that count, and 0 if none does. What other rays hold has no effect, NaN
    included, and their gradient is exactly 0. Sums have a fixed order: the same input gives the same bits.

    Args:
        rgb: [R, 3], rendered, background included.
        target: [R, 3], straight alpha where ``alpha`` is given.
        kept: [R] bool.
        mask: [R] bool.
        alpha: [R].
        background: [3] or [R, 3], finite; needed with ``alpha``, else ignored.
        delta: > 0; inf for half the squared error.

    Returns:
        loss [], mse [], both float32, and n_rays [] int64; nothing is synchronized. The loss is differentiable, once, in
        ``rgb``. Where target, alpha or background require a gradient, as for a learned background, :func:`reference`
        computes the same, differentiable any number of times and slower.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, alpha comes without background, or delta is not > 0.

    Source: Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 1964.
    """
    check_tensor("kept", kept, ("R",), torch.bool)
    n = kept.shape[0]
    check_tensor("rgb", rgb, (n, 3), _FLOATS)
    check_tensor("target", target, (n, 3), _FLOATS)
    if mask is not None:
        check_tensor("mask", mask, (n,), torch.bool)
    if alpha is None:
        background = None
    elif background is None:
        raise BadArgument("background: expected a tensor, as there is alpha, got None")
    else:
        check_tensor("alpha", alpha, (n,), _FLOATS)
        check_tensor("background", background, (3,) if background.ndim == 1 else (n, 3), _FLOATS)
    if not delta > 0:
        raise BadArgument(f"delta: expected > 0, got {delta}")
    check_same_device(kept=kept, rgb=rgb, target=target, mask=mask, alpha=alpha, background=background)
    op = reference if needs_grad(target, alpha, background) else torch.ops.lightning_nerf.ray_loss
    return op(
        rgb.float().contiguous(),
        target.float().contiguous(),
        None if alpha is None else alpha.float().contiguous(),
        None if background is None else background.float().contiguous(),
        kept.contiguous(),
        None if mask is None else mask.contiguous(),
        float(delta),
    )


def reference(
    rgb: Tensor,
    target: Tensor,
    alpha: Tensor | None,
    background: Tensor | None,
    kept: Tensor,
    mask: Tensor | None,
    delta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    counted = kept if mask is None else kept & mask
    column = counted[:, None]
    if alpha is not None and background is not None:
        # Masked, as all below, so that a derivative meets no 0 * NaN.
        target = torch.lerp(background.expand_as(target), target, torch.where(column, alpha[:, None], 0.0))
    rgb, target = torch.where(column, rgb, 0.0), torch.where(column, target, 0.0)
    n_rays = counted.sum()
    share = 1 / (3 * n_rays.clamp(min=1)).to(rgb.dtype)
    loss = huber_loss(rgb, target, reduction="none", delta=delta).sum() * share
    mse = mse_loss(rgb.detach(), target.detach(), reduction="none").sum() * share
    return loss, mse, n_rays


def backward_reference(
    grad_loss: Tensor,
    rgb: Tensor,
    target: Tensor,
    alpha: Tensor | None,
    background: Tensor | None,
    kept: Tensor,
    mask: Tensor | None,
    n_rays: Tensor,
    delta: float,
) -> Tensor:
    def loss(rgb: Tensor) -> Tensor:
        return reference(rgb, target, alpha, background, kept, mask, delta)[0]

    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    return torch.func.vjp(loss, rgb)[1](grad_loss)[0]


def _fake(rgb: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return rgb.new_empty(()), rgb.new_empty(()), rgb.new_empty((), dtype=torch.int64)


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Context, grad_loss: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    grad = None
    if grad_loss is not None:
        grad = torch.ops.lightning_nerf.ray_loss_backward(grad_loss, *ctx.saved_tensors, ctx.delta)
    return grad, None, None, None, None, None, None


_ARGUMENTS = "Tensor rgb, Tensor target, Tensor? alpha, Tensor? background, Tensor kept, Tensor? mask"
library.define("ray_loss", f"({_ARGUMENTS}, float delta) -> (Tensor loss, Tensor mse, Tensor n_rays)", reference, _fake)
library.define(
    "ray_loss_backward",
    f"(Tensor grad_loss, {_ARGUMENTS}, Tensor n_rays, float delta) -> Tensor",
    backward_reference,
    lambda grad_loss, rgb, *_: torch.empty_like(rgb),
)
library.differentiable("ray_loss", _setup_context, _backward)
library.once_differentiable("ray_loss_backward", "lightning_nerf.ops.ray_loss.reference is differentiable twice")
