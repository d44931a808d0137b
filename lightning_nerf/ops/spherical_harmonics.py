"""Real spherical harmonics of directions: a smooth encoding of the viewing direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context

MAX_DEGREE = 5


def spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    r"""The real spherical harmonics Y_lm, l < degree, of N directions.

        Y_l0 = K_l0 P_l0(cos theta),  Y_lm = sqrt(2) K_lm P_lm(cos theta) * (cos m phi, or sin |m| phi for m < 0)
        K_lm = sqrt((2l + 1) / (4 pi) * (l - |m|)! / (l + |m|)!)

    with the associated Legendre functions P_l|m| including the Condon-Shortley phase (-1)^m, so Y_1 = 0.4886 (-y, z, -x):
    the sign convention of graphics. They are orthonormal over the sphere.

    Args:
        directions: [N, 3] float32 of any length between about 1e-19 and 1e19: normalized here. Zero, longer, shorter or not
            finite: no direction is known, and the result is the mean over all of them, ``Y_00`` followed by zeros.
        degree: 1 to 5; 4 gives 16 coefficients.

    Returns:
        [N, degree^2] float32, Y_lm at column ``l^2 + l + m``.

    Differentiable once in the directions, normalization included (so the gradient is orthogonal to the direction); 0 where
    no direction is known. :func:`reference` is differentiable twice. Under autocast it stays in float32.

    Source: Sloan, "Efficient Spherical Harmonic Evaluation", Journal of Computer Graphics Techniques 2(2), 2013.
    """
    check_tensor("directions", directions, ("N", 3), torch.float32)
    if not 1 <= degree <= MAX_DEGREE:
        raise BadArgument(f"degree: expected 1 to {MAX_DEGREE}, got {degree}")
    return torch.ops.lightning_nerf.spherical_harmonics(directions.contiguous(), degree)


def reference(directions: Tensor, degree: int) -> Tensor:
    """By the recurrences of the Legendre functions, where the kernels write the polynomials out."""
    squared = directions.detach().square().sum(-1, keepdim=True)
    limits = torch.finfo(directions.dtype)
    known = (squared >= limits.tiny) & (squared <= limits.max)
    direction = torch.where(known, directions, 0.0)  # before any arithmetic: NaN * 0 would reach the gradient
    x, y, z = (direction * torch.where(known, direction.square().sum(-1, keepdim=True), 1.0).rsqrt()).unbind(-1)

    columns = [torch.zeros_like(x)] * degree**2
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)  # (x + iy)^m = sin^m theta * exp(i m phi)
    diagonal = 1.0  # P_mm / sin^m theta = (-1)^m (2m - 1)!!
    for m in range(degree):
        below, current = torch.zeros_like(z), torch.full_like(z, diagonal)
        for order in range(m, degree):
            norm = math.sqrt((2 * order + 1) / (4 * math.pi) * math.factorial(order - m) / math.factorial(order + m))
            center = order * order + order
            if m > 0:
                norm *= math.sqrt(2.0)
                columns[center - m] = norm * current * imaginary
            columns[center + m] = norm * current * real
            below, current = current, ((2 * order + 1) * z * current - (order + m) * below) / (order + 1 - m)
        real, imaginary = x * real - y * imaginary, x * imaginary + y * real
        diagonal *= -(2 * m + 1)
    out = torch.stack(columns, -1)
    constant = torch.arange(degree**2, device=out.device) == 0
    return torch.where(known | constant, out, 0.0)


def reference_backward(grad: Tensor, directions: Tensor, degree: int) -> Tensor:
    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    return torch.func.vjp(lambda d: reference(d, degree), directions)[1](grad)[0]


def _setup_context(ctx: Context, inputs: tuple[Tensor, int], output: Tensor) -> None:
    directions, ctx.degree = inputs
    ctx.save_for_backward(directions)


def _backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    (directions,) = ctx.saved_tensors
    return torch.ops.lightning_nerf.spherical_harmonics_backward(grad.contiguous(), directions, ctx.degree), None


library.define(
    "spherical_harmonics",
    "(Tensor directions, int degree) -> Tensor",
    reference,
    lambda directions, degree: directions.new_empty((directions.shape[0], degree**2)),
)
library.define(
    "spherical_harmonics_backward",
    "(Tensor grad, Tensor directions, int degree) -> Tensor",
    reference_backward,
    lambda grad, directions, degree: torch.empty_like(directions),
)
library.differentiable("spherical_harmonics", _setup_context, _backward)
library.once_differentiable(
    "spherical_harmonics_backward",
    instead="differentiate lightning_nerf.ops.spherical_harmonics.reference for second derivatives",
)
