"""Cumulative sums and products along the segments of a packed list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.segments import check_packed_info, ranks
from lightning_nerf.ops.transforms import is_transformed


def segmented_sum(
    values: Tensor,
    *,
    offsets: Tensor | None = None,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    exclusive: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Cumulative sums within each segment: of the entries up to this one, ``y_i = sum over j <= i of x_j``.

    Args:
        values: [N] float32; bfloat16 and float16 are summed in float32, float64 by :func:`reference`.
        offsets: [R + 1] int32, CSR: segment r is the entries ``offsets[r]`` to ``offsets[r + 1]``; ``offsets[0] == 0``,
            never falling, ``offsets[R] <= N``. Not checked, which would synchronize.
        packed_info: [R, 2] int64, begin and count of each segment, in any order, with gaps between them or without, never
            overlapping. Checked on a CPU; on CUDA, segments are cut off at the memory's ends, and where they overlap either
            one's result may stand.
        ray_indices: [N] int64 or int32: a segment is a run of equal indices, whether or not they are sorted.
            Exactly one of these three says where the segments are.
        exclusive: without the entry itself, ``j < i``.
        reverse: from the segment's end, ``j >= i`` (``j > i``).

    Returns:
        [N], in the dtype of ``values``; 0 for entries in no segment, whatever they hold. Nothing is synchronized.

    Differentiable in ``values``, any number of times. Precision: on a CPU sums are accumulated in float64. On CUDA in
    float32, pairwise within L entries and one after the other beyond that, where L is 4 to 32, the longer the segments the
    more: a sum of n entries is rounded up to ``5 + n / L`` times.

    Raises:
        ValueError: wrong shape, dtype or device, none or several of the three lists, or a bad ``packed_info``.
    """
    return _scan(values, offsets, packed_info, ray_indices, False, exclusive, reverse)


def segmented_product(
    values: Tensor,
    *,
    offsets: Tensor | None = None,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    exclusive: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Cumulative products within each segment, ``y_i = product over j <= i of x_j``; 1 for an exclusive one's first entry.

    Arguments, result and order as for :func:`segmented_sum`; n factors give a relative error of up to ``n 2^-24``.

    Differentiable in ``values``, any number of times (from the second on by :func:`reference`). The gradient takes no
    quotients, so it is exact where values are 0, however many: with g the gradient of y and P exclusive products,

        dL/dx_i = P_i S_i,    S_i = g_i + x_{i+1} S_{i+1}    (exclusive: S_i = g_{i+1} + x_{i+1} S_{i+1}, 0 at the end)

    It is 0 wherever S_i is, even where P_i is infinite (but for derivatives by :func:`reference`). Products beyond
    float32's range are infinite; an infinite one times 0 is NaN, within its segment only.
    """
    return _scan(values, offsets, packed_info, ray_indices, True, exclusive, reverse)


def _scan(
    values: Tensor,
    offsets: Tensor | None,
    packed_info: Tensor | None,
    ray_indices: Tensor | None,
    product: bool,
    exclusive: bool,
    reverse: bool,
) -> Tensor:
    check_tensor("values", values, ("N",), FLOATS)
    given = [s for s in (offsets, packed_info, ray_indices) if s is not None]
    if len(given) != 1:
        raise BadArgument(f"offsets, packed_info, ray_indices: expected exactly one of them, got {len(given)}")
    check_same_device(values=values, offsets=offsets, packed_info=packed_info, ray_indices=ray_indices)
    n = values.shape[0]
    if offsets is not None:
        check_tensor("offsets", offsets, ("R + 1",), torch.int32)
        if offsets.shape[0] == 0:
            raise BadArgument("offsets: expected shape [R + 1] with R >= 0, got [0]")
        segments = offsets
    elif packed_info is not None:
        check_packed_info("packed_info", packed_info, n)
        segments = packed_info
    else:
        assert ray_indices is not None
        check_tensor("ray_indices", ray_indices, (n,), (torch.int64, torch.int32))
        segments = ray_indices.long()
    segments = segments.contiguous()
    if values.dtype == torch.float64 or is_transformed():
        return reference(values, segments, product, exclusive, reverse)
    out = torch.ops.lightning_nerf.scan(values.float().contiguous(), segments, product, exclusive, reverse)
    return out.to(values.dtype)


def reference(values: Tensor, segments: Tensor, product: bool, exclusive: bool, reverse: bool) -> Tensor:
    """The definition in float64, by doubling: after k steps an entry holds what 2^k entries give.

    Not by a cumulative sum over all segments: one segment's infinity or cancellation would reach the others.
    """
    identity = 1.0 if product else 0.0
    rank, before = _walk(values.shape[0], segments, reverse)
    state = torch.where(rank >= 0, values.double(), identity)
    if exclusive:
        state = before(state, 1, identity)
    for distance in _distances(rank):
        earlier = before(state, distance, identity)
        state = state * earlier if product else state + earlier
    return torch.where(rank >= 0, state, 0.0).to(values.dtype)


def _walk(n: int, segments: Tensor, reverse: bool) -> tuple[Tensor, Callable[[Tensor, int, float], Tensor]]:
    """Each entry's rank in the walk's direction, and what stands some distance before it in its segment, else ``fill``."""
    rank = ranks(n, segments, reverse=reverse)

    def before(state: Tensor, distance: int, fill: float) -> Tensor:
        return torch.where(rank >= distance, state.roll(-distance if reverse else distance), fill)

    return rank, before


def _distances(rank: Tensor) -> list[int]:
    """Powers of two below the length of the longest segment, which is known without waiting on a CPU only."""
    longest = int(rank.max()) + 1 if len(rank) and rank.device.type == "cpu" else len(rank)
    return [2**k for k in range(max(longest - 1, 0).bit_length())]


def product_backward_reference(
    grad: Tensor, values: Tensor, products: Tensor, segments: Tensor, exclusive: bool, reverse: bool
) -> Tensor:
    """P S as :func:`segmented_product` states it, S by doubling of the maps s -> factor s + summand."""
    n = values.shape[0]
    rank, before = _walk(n, segments, not reverse)
    factor = before(values.double(), 1, 0.0)
    summand = before(grad.double(), 1, 0.0) if exclusive else torch.where(rank >= 0, grad.double(), 0.0)
    for distance in _distances(rank):
        earlier = before(summand, distance, 0.0)
        summand = summand + torch.where(earlier == 0, 0.0, factor * earlier)
        factor = factor * before(factor, distance, 1.0)
    product = products.double() if exclusive else _walk(n, segments, reverse)[1](products.double(), 1, 1.0)
    return torch.where(summand == 0, 0.0, product * summand).to(values.dtype)


def _setup_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    values, segments, ctx.product, ctx.exclusive, ctx.reverse = inputs
    ctx.save_for_backward(*((values, segments, output) if ctx.product else (segments,)))


def _backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    ops, how = torch.ops.lightning_nerf, (ctx.exclusive, ctx.reverse)
    if not ctx.product:
        (segments,) = ctx.saved_tensors
        return ops.scan(grad.contiguous(), segments, False, ctx.exclusive, not ctx.reverse), *(None,) * 4
    values, segments, products = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: a gradient of this gradient may be wanted
        again = reference(values, segments, True, *how)
        return torch.autograd.grad(again, values, grad, create_graph=True)[0], *(None,) * 4
    return ops.scan_product_backward(grad.contiguous(), values, products, segments, *how), *(None,) * 4


def _fake(values: Tensor, segments: Tensor, product: bool, exclusive: bool, reverse: bool) -> Tensor:
    return torch.empty_like(values)


def _fake_backward(grad: Tensor, values: Tensor, *_: object) -> Tensor:
    return torch.empty_like(values)


library.define(
    "scan",
    "(Tensor values, Tensor segments, bool product, bool exclusive, bool reverse) -> Tensor",
    reference,
    _fake,
)
library.define(
    "scan_product_backward",
    "(Tensor grad, Tensor values, Tensor products, Tensor segments, bool exclusive, bool reverse) -> Tensor",
    product_backward_reference,
    _fake_backward,
)
library.differentiable("scan", _setup_context, _backward)
library.once_differentiable(
    "scan_product_backward", "lightning_nerf.ops.scan.reference is differentiable any number of times"
)
