"""Activations that fields share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.ops.library import Context

_LARGEST = 15.0
_SATURATED = 6.1441368e-6  # the derivative of the sigmoid at 12 and at -12; what is below it counts as saturated
_WAY_BACK = 0.006648056671  # its derivative at 5 and at -5: what a saturated color gets on its way back


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * x.clamp(-_LARGEST, _LARGEST).exp()


def truncated_exp(x: Tensor) -> Tensor:
    """exp(x) in float32, with the derivative of exp(clamp(x, -15, 15)): a huge density cannot blow up its own gradient.

    Source: Instant-NGP's density activation (Mueller et al. 2022, released code).
    """
    result = _TruncatedExp.apply(x.float())
    assert isinstance(result, Tensor)
    return result


class _LeakySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        returns = grad * (y - 0.5) > 0  # descent goes against the gradient
        saturated = y * (1 - y) < _SATURATED
        return torch.where(returns & saturated, grad * _WAY_BACK, grad * (1 - y) * y)  # the latter as torch rounds it


def leaky_sigmoid(x: Tensor) -> Tensor:
    """sigmoid(x) in float32, with a gradient that leads a saturated x back, however far out it is.

    Beyond 12 and -12, where a descent step brings x closer to 0, the derivative is that at 5, 0.0066; everywhere else it is
    the true one. The gradient of ``torch.sigmoid`` is 0 in float32 from about 17 on. Adam moves weights by its rate,
    however small the gradient, so in its first steps it can take all colors of a dark scene far beyond that, and they
    never return. A derivative of 0.0066 in both directions would let x drift outwards without end.

    >>> import torch
    >>> from lightning_nerf.fields.activations import leaky_sigmoid
    >>> x = torch.tensor([50.0], requires_grad=True)
    >>> too_light = torch.tensor([1.0])
    >>> torch.autograd.grad(leaky_sigmoid(x), x, too_light)
    (tensor([0.0066]),)
    >>> torch.autograd.grad(torch.sigmoid(x), x, too_light)
    (tensor([0.]),)
    """
    result = _LeakySigmoid.apply(x.float())
    assert isinstance(result, Tensor)
    return result
