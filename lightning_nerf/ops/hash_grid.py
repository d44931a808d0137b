"""Multiresolution hash encoding: a feature vector per point, interpolated in the grids of several resolutions."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs

PRIMES = (1, 2654435761, 805459861, 3674653429)


TABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def hash_grid(
    positions: Tensor,
    table: Tensor,
    levels: Tensor,
    *,
    working: Tensor | None = None,
    dtype: torch.dtype | None = None,
    deterministic: bool = False,
) -> Tensor:
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
            ``offset + size``. The size of a hashed level is a power of two. Read on its device, without synchronization;
            a level that does not fit the table is an error on the CPU and stops the kernel on CUDA.
        working: [T, F], a copy of ``table`` in a narrower dtype. The rows are read from it; the table's gradient is that of
            a table with these values and passes through no narrower dtype. It gets no gradient itself.
        dtype: of the features, one of the table's three; None: that of ``working``, else of ``table``.
        deterministic: see below; also on while ``torch.use_deterministic_algorithms(True)``.

    Returns:
        [N, L * F], level by level. Sums are taken in float32.

    Differentiable once in positions (within a cell; the kinks between cells get the right-hand value) and in the table,
    whose gradient is summed in float32 and returned dense, in the table's dtype. On CUDA the order of that sum varies from
    run to run unless ``deterministic``: then it is taken in 64-bit fixed point, in steps of at most 2^-60 N max |gradient|,
    and is NaN throughout if one gradient is not finite. On the CPU its bits do not depend on the number of threads.
    :func:`reference` is differentiable twice.

    Source: Mueller, Evans, Schied, Keller, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding",
    SIGGRAPH 2022, sections 3 and 4 (equation 4: the hash).
    """
    check_tensor("positions", positions, ("N", "D"), torch.float32)
    check_tensor("table", table, ("T", "F"), TABLE_DTYPES)
    check_tensor("levels", levels, ("L", 3), (torch.int32, torch.int64))
    check_same_device(positions=positions, table=table, levels=levels, working=working)
    if positions.shape[1] not in (2, 3, 4):
        raise BadArgument(f"positions: expected 2, 3 or 4 dimensions, got {positions.shape[1]}")
    if table.shape[1] not in (1, 2, 4, 8):
        raise BadArgument(f"table: expected 1, 2, 4 or 8 features, got {table.shape[1]}")
    if working is not None:
        check_tensor("working", working, tuple(table.shape), TABLE_DTYPES)
        working = working.detach().contiguous()
    if dtype is None:
        dtype = table.dtype if working is None else working.dtype
    elif dtype not in TABLE_DTYPES:
        raise BadArgument(f"dtype: expected {' or '.join(map(str, TABLE_DTYPES))}, got {dtype}")
    levels = levels.to(torch.int32).contiguous()
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    return torch.ops.lightning_nerf.hash_grid(
        positions.contiguous(), table.contiguous(), levels, working, dtype, deterministic
    )


def table_gradient(
    grad: Tensor, positions: Tensor, table: Tensor, levels: Tensor, *, deterministic: bool = False
) -> Tensor:
    """The table's gradient [T, F], in its dtype, for the features' gradient [N, L * F]: for kernels fused around the op.

    ``grad`` is float32, float16 or bfloat16, whatever the table's dtype, and is summed in float32. ``levels`` is int32.
    """
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    backward = torch.ops.lightning_nerf.hash_grid_backward
    return backward(grad.contiguous(), positions, table, levels, None, False, True, deterministic)[1]


def reference(
    positions: Tensor,
    table: Tensor,
    levels: Tensor,
    working: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = False,
) -> Tensor:
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
    if working is not None:
        rows = rows + (working.to(dtype) - rows).detach()  # working's values, table's gradient
    out = torch.zeros((), dtype=dtype, device=table.device)
    for corner in itertools.product((0, 1), repeat=dims):
        weight = functools.reduce(torch.mul, [weights[c, d] for d, c in enumerate(corner)])  # [N, L]
        vertex = [terms[c, d] for d, c in enumerate(corner)]
        hashed = functools.reduce(torch.bitwise_xor, vertex) & (size - 1)
        row = offset + torch.where(dense, functools.reduce(torch.add, vertex), hashed)
        out = out + weight[..., None] * rows.index_select(0, row.flatten()).unflatten(0, row.shape)
    return out.flatten(1).to(out_dtype or (table if working is None else working).dtype)


def reference_backward(
    grad: Tensor,
    positions: Tensor,
    table: Tensor,
    levels: Tensor,
    working: Tensor | None,
    for_positions: bool,
    for_table: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    pullback = torch.func.vjp(lambda p, t: reference(p, t, levels, working, grad.dtype), positions, table)[1]
    grad_positions, grad_table = pullback(grad)
    return grad_positions if for_positions else positions.new_empty(0), grad_table if for_table else table.new_empty(0)


def _fake(
    positions: Tensor, table: Tensor, levels: Tensor, working: Tensor | None, dtype: torch.dtype, deterministic: bool
) -> Tensor:
    return positions.new_empty((positions.shape[0], levels.shape[0] * table.shape[1]), dtype=dtype)


def _fake_backward(
    grad: Tensor,
    positions: Tensor,
    table: Tensor,
    levels: Tensor,
    working: Tensor | None,
    for_positions: bool,
    for_table: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(positions) if for_positions else positions.new_empty(0),
        torch.empty_like(table) if for_table else table.new_empty(0),
    )


def _setup_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    *tensors, _, deterministic = inputs
    ctx.save_for_backward(*tensors)
    ctx.deterministic = deterministic


def _backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    for_positions, for_table = ctx.needs_input_grad[:2]
    if grad is None:
        return (None,) * 6
    grad_positions, grad_table = torch.ops.lightning_nerf.hash_grid_backward(
        grad.contiguous(), *ctx.saved_tensors, for_positions, for_table, ctx.deterministic
    )
    return grad_positions if for_positions else None, grad_table if for_table else None, None, None, None, None


library.define(
    "hash_grid",
    "(Tensor positions, Tensor table, Tensor levels, Tensor? working, ScalarType dtype, bool deterministic) -> Tensor",
    reference,
    _fake,
)
library.define(
    "hash_grid_backward",
    "(Tensor grad, Tensor positions, Tensor table, Tensor levels, Tensor? working, "
    "bool for_positions, bool for_table, bool deterministic) -> (Tensor, Tensor)",
    reference_backward,
    _fake_backward,
)
library.differentiable("hash_grid", _setup_context, _backward)
library.once_differentiable(
    "hash_grid_backward", instead="differentiate lightning_nerf.ops.hash_grid.reference for second derivatives"
)
