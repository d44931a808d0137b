"""Limits of t that come as a number, as a tensor of one element, or for each ray."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType


def per_ray(name: str, limit: Tensor | float | None, n_rays: int, like: Tensor) -> Tensor | None:
    """A limit of t for each ray, [R] float32."""
    if limit is None or (isinstance(limit, Tensor) and limit.dtype is torch.float32 and limit.shape == (n_rays,)):
        return limit
    if not isinstance(limit, Tensor):
        if not isinstance(limit, numbers.Real):
            raise BadType(f"{name}: expected a tensor, a number or None, got {type(limit).__name__}")
        return like.new_full((n_rays,), float(limit), dtype=torch.float32)
    if limit.is_complex() or limit.shape not in ((), (1,), (n_rays,)):
        got = f"{limit.dtype} of {list(limit.shape)}"
        raise BadArgument(f"{name}: expected real numbers of shape [{n_rays}] or one for all rays, got {got}")
    return limit.to(torch.float32).expand(n_rays)
