"""Activations that fields share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.ops._library import Context

_LARGEST = 15.0


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
