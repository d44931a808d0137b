"""How far float32 sums in any order may take a layer of rounded operands, in interval arithmetic.

A kernel and its reference round the same operands, but sum in different orders. Where a sum lies within its error of a
point of rounding, the two may round differently; where it lies within its error of 0, a ReLU may pass the gradient in one
and stop it in the other. Such a gradient is off altogether, so the rows concerned tell nothing: comparisons leave them out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CUT = 2.0**-23  # what float32 loses at most of a number, cut off


class Interval(NamedTuple):
    """Numbers known up to ``radius``; both float64."""

    middle: Tensor
    radius: Tensor


def known(x: Tensor, radius: float = 0.0) -> Interval:
    return Interval(x.double(), torch.full_like(x, radius, dtype=torch.float64))


def rounded(x: Interval, dtype: torch.dtype) -> Interval:
    middle, low, high = (v.to(dtype).double() for v in (x.middle, x.middle - x.radius, x.middle + x.radius))
    return Interval(middle, torch.maximum(high - middle, middle - low))


def layer(x: Interval, weight: Tensor, dtype: torch.dtype) -> Interval:
    """Operands rounded to ``dtype``, sums of their products in float32.

    Every addition of a product other than 0 errs by up to 2^-23 of a sum of some of them, whatever their order: by half of
    that where it is rounded to nearest; tensor cores add several at once, each cut off at 2^-23 of the largest or below
    (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021). No such sum exceeds that of the
    positive products, or that of the negative ones.
    """
    x, w = rounded(x, dtype), weight.to(dtype).double()
    middle, spread, magnitudes = x.middle @ w.T, x.radius @ w.abs().T, x.middle.abs() @ w.abs().T
    additions = ((x.middle != 0) | (x.radius != 0)).sum(-1, keepdim=True)
    return Interval(middle, spread + additions * CUT * ((magnitudes + middle.abs()) / 2 + spread))


def relu(x: Interval, dtype: torch.dtype) -> tuple[Interval, Tensor]:
    """The numbers, and [N]: do all of a row's pass or stop alike, wherever in their intervals they are?"""
    x = rounded(x, dtype)
    decided = (x.middle.abs() > x.radius) | (x.radius == 0)
    return Interval(x.middle.relu(), x.radius), decided.all(-1)
