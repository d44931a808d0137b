"""Multiresolution hash encoding: a feature vector per point, interpolated in the grids of several resolutions."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.ops import _library
from lightning_nerf.ops._checks import check_same_device, check_tensor

PRIMES = (1, 2654435761, 805459861, 3674653429)


def hash_grid(positions: Tensor, table: Tensor, levels: Tensor) -> Tensor:
    r"""Features of N points: per level, the rows of the 2^D corners of the point's cell, interpolated linearly.

    Level l with resolution R has vertices v in {0, ..., R}^D. A point has the grid coordinates ``u = x * (R - 1) + 1/2``,
    lies in the cell ``floor(u)`` and gets

        out_l = sum over corners v of  table[offset + row(v)] * prod over axes d of (1 - |u_d - v_d|)

    where ``row(v) = sum_d v_d (R + 1)^d`` if ``(R + 1)^D <= size`` (a dense level), else
    ``(xor_d v_d * prime_d mod 2^32) mod size`` with the primes 1, 2654435761, 805459861, 3674653429. As in the authors'
    code, u is shifted by half a cell and scaled by R - 1: with u = x * R the vertices of all levels would coincide on the
    faces of the box (and, where resolutions double, throughout), and every level would have its kink there.

    Args:
        positions: [N, D] float32, D = 2, 3 or 4, in [0, 1]. Coordinates outside are clamped, NaN counts as 0; their
            gradients are 0. float32 also under autocast, which leaves this op's arguments alone: 2048 cells along an axis
            need more than the 8 or 11 bits of a half type.
        table: [T, F] float32, float16 or bfloat16, F = 1, 2, 4 or 8; the rows of all levels.
        levels: [L, 3] int32 or int64, each level's (resolution, offset, size): it owns the rows ``offset`` to
            ``offset + size``. The size of a hashed level is a power of two. Read on its device, without synchronisation;
            a level that does not fit the table is an error on the CPU and stops the kernel on CUDA.

    Returns:
        [N, L * F] in the table's dtype, level by level. Sums are taken in float32.

    Differentiable once in positions (within a cell; the kinks between cells get the right-hand value) and in the table,
    whose gradient is summed in float32 and returned dense, in the table's dtype. On CUDA the order of that sum varies from
    run to run; on the CPU its bits do not depend on the number of threads. :func:`reference` is differentiable twice.

    Source: Mueller, Evans, Schied, Keller, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding",
    SIGGRAPH 2022, sections 3 and 4 (equation 4: the hash).
    """
    check_tensor("positions", positions, ("N", "D"), torch.float32)
    check_tensor("table", table, ("T", "F"), (torch.float32, torch.float16, torch.bfloat16))
    check_tensor("levels", levels, ("L", 3), (torch.int32, torch.int64))
    check_same_device(positions=positions, table=table, levels=levels)
    if positions.shape[1] not in (2, 3, 4):
        raise ValueError(f"positions: expected 2, 3 or 4 dimensions, got {positions.shape[1]}")
    if table.shape[1] not in (1, 2, 4, 8):
        raise ValueError(f"table: expected 1, 2, 4 or 8 features, got {table.shape[1]}")
    levels = levels.to(torch.int32).contiguous()
    return torch.ops.lightning_nerf.hash_grid(positions.contiguous(), table.contiguous(), levels)


def reference(positions: Tensor, table: Tensor, levels: Tensor) -> Tensor:
    dims = positions.shape[1]
    dtype = torch.promote_types(positions.dtype, table.dtype)
    resolution, offset, size = levels.to(torch.int64).unbind(-1)  # [L]
    dense = (resolution + 1).double() ** dims <= size  # exact: double holds every integer that passes
    multiplier = torch.stack([torch.where(dense, (resolution + 1) ** d, PRIMES[d]) for d in range(dims)])  # [D, L]

    x = torch.where(positions.isnan(), 0.0, positions).clamp(0.0, 1.0)
    coordinate = x.T[..., None] * (resolution - 1) + 0.5  # [D, N, L]
    cell = coordinate.detach().floor()
    upper = (coordinate - cell).to(dtype)
    weights = torch.stack([1 - upper, upper])  # [2, D, N, L]
    lowest = cell.to(torch.int64) * multiplier[:, None]
    terms = torch.stack([lowest, lowest + multiplier[:, None]])

    rows = table.to(dtype)
    out = torch.zeros((), dtype=dtype, device=table.device)
    for corner in itertools.product((0, 1), repeat=dims):
        weight = functools.reduce(torch.mul, [weights[c, d] for d, c in enumerate(corner)])  # [N, L]
        vertex = [terms[c, d] for d, c in enumerate(corner)]
        hashed = functools.reduce(torch.bitwise_xor, vertex) & (size - 1)
        row = offset + torch.where(dense, functools.reduce(torch.add, vertex), hashed)
        out = out + weight[..., None] * rows.index_select(0, row.flatten()).unflatten(0, row.shape)
    return out.flatten(1).to(table.dtype)


def reference_backward(
    grad: Tensor, positions: Tensor, table: Tensor, levels: Tensor, for_positions: bool, for_table: bool
) -> tuple[Tensor, Tensor]:
    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    pullback = torch.func.vjp(lambda p, t: reference(p, t, levels), positions, table)[1]
    grad_positions, grad_table = pullback(grad)
    return grad_positions if for_positions else positions.new_empty(0), grad_table if for_table else table.new_empty(0)


def _fake_backward(
    grad: Tensor, positions: Tensor, table: Tensor, levels: Tensor, for_positions: bool, for_table: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(positions) if for_positions else positions.new_empty(0),
        torch.empty_like(table) if for_table else table.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    for_positions, for_table = ctx.needs_input_grad[:2]
    if grad is None:
        return None, None, None
    grad_positions, grad_table = torch.ops.lightning_nerf.hash_grid_backward(
        grad.contiguous(), *ctx.saved_tensors, for_positions, for_table
    )
    return grad_positions if for_positions else None, grad_table if for_table else None, None


_library.define(
    "hash_grid",
    "(Tensor positions, Tensor table, Tensor levels) -> Tensor",
    reference,
    lambda positions, table, levels: table.new_empty((positions.shape[0], levels.shape[0] * table.shape[1])),
)
_library.define(
    "hash_grid_backward",
    "(Tensor grad, Tensor positions, Tensor table, Tensor levels, bool for_positions, bool for_table) -> (Tensor, Tensor)",
    reference_backward,
    _fake_backward,
)
_library.differentiable("hash_grid", _setup_context, _backward)
_library.once_differentiable(
    "hash_grid_backward", instead="differentiate lightning_nerf.ops.hash_grid.reference for second derivatives"
)
