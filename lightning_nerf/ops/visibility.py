"""Samples that can be seen: in front of what is opaque, and not empty themselves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_instance, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops._exact import write_exactly
from lightning_nerf.ops.memory import check_capacity_fits
from lightning_nerf.ops.pack import check_capacity, pack
from lightning_nerf.ops.pack import reference as pack_reference
from lightning_nerf.ops.segments import exclusive_sum
from lightning_nerf.types import Densities, Evaluated, PackedSamples, Placement, Pruning, Query, Rays

ALL = (0, 2**31 - 1)  # samples of a ray


def prune_from(
    densities: Tensor,
    samples: PackedSamples,
    *,
    early_stop_eps: float = 1e-4,
    alpha_thre: float | Tensor = 0.0,
    window: tuple[int, int] = ALL,
    capacity: int | None = None,
) -> tuple[PackedSamples, Tensor]:
    """The samples i with transmittance T_i >= early_stop_eps and opacity alpha_i >= alpha_thre, in their order.

    With d_i = densities_i (t_ends_i - t_starts_i): alpha_i = 1 - exp(-d_i), and T_i = exp(-sum of d_j over j < i of the
    ray), *all* its samples, those with alpha_j < alpha_thre included. Both are compared as optical depths in float64. A NaN
    or negative density counts as 0, an infinite one as opaque.

    Args:
        densities: [N] float32 >= 0, per unit of t. Behind the first sample with T_i < early_stop_eps they may be anything,
            0 included, as where a field was not evaluated there.
        samples: N samples of R rays.
        early_stop_eps: >= 0; 0 keeps all samples in front of infinite density.
        alpha_thre: a number, or a tensor of one float on the samples' device, so that it can change inside a CUDA graph.
        window: only the samples of a ray from the first number to before the second may survive; those in front of the
            window still hide what is in it.
        capacity: None: exactly as many samples as survive, one host synchronization. Else N' without synchronization, see
            :func:`~lightning_nerf.ops.pack.pack`.

    Returns:
        The surviving samples, and for each the index of the sample that it was, [N'] int32, 0 in the tail. ``kept`` is
        False also where ``samples.kept`` is. Not differentiable.

    Source: Müller et al., "Instant neural graphics primitives", SIGGRAPH 2022, appendix E; the semantics of both thresholds
    are those of ``render_visibility`` in Li et al., "NerfAcc", ICCV 2023.
    """
    n = samples.t_starts.shape[0]
    check_tensor("densities", densities, (n,), torch.float32)
    check_tensor("samples.t_starts", samples.t_starts, ("N",), torch.float32)
    check_tensor("samples.t_ends", samples.t_ends, (n,), torch.float32)
    check_tensor("samples.offsets", samples.offsets, ("R + 1",), torch.int32)
    check_tensor("samples.kept", samples.kept, (samples.offsets.shape[0] - 1,), torch.bool)
    if not early_stop_eps >= 0:
        raise BadArgument(f"early_stop_eps: expected >= 0, got {early_stop_eps}")
    if not 0 <= window[0] <= window[1]:
        raise BadArgument(f"window: expected two numbers, 0 <= first <= last, got {window}")
    if isinstance(alpha_thre, Tensor):
        if alpha_thre.ndim > 0 and alpha_thre.numel() == 1:
            alpha_thre = alpha_thre.reshape(())
        check_tensor("alpha_thre", alpha_thre, (), FLOATS)
        threshold = alpha_thre.detach().float()
    else:
        threshold = torch.full((), alpha_thre, dtype=torch.float32, device=densities.device)
    check_same_device(
        densities=densities,
        **{f"samples.{name}": getattr(samples, name) for name in ("t_starts", "t_ends", "offsets", "kept")},
        alpha_thre=threshold,
    )
    # Between two waits for the device, each call here is time in which it idles.
    tensors = (densities, samples.t_starts, samples.t_ends, samples.offsets)
    contiguous = tuple((t.detach() if t.requires_grad else t).contiguous() for t in tensors)
    thresholds = (float(early_stop_eps), threshold, *window)
    ops = torch.ops.lightning_nerf
    if capacity is None:
        arguments = (*contiguous, *thresholds)
        offsets, kept = pack(ops.visibility_count(*arguments))
        _, _, lists = write_exactly(offsets, None, lambda size: ops.visibility_write(*arguments, offsets, size))
        t_starts, t_ends, ray_indices, sources = lists
        kept = kept & samples.kept
    else:
        check_capacity(capacity)
        check_capacity_fits(capacity, densities.device)
        survivors = ops.visibility_pack(*contiguous, samples.kept.contiguous(), *thresholds, capacity)
        t_starts, t_ends, ray_indices, offsets, kept, sources = survivors
    return PackedSamples(t_starts, t_ends, ray_indices, offsets, kept), sources


def prune_by(
    query: Query, rays: Rays, candidates: PackedSamples, pruning: Pruning, capacity: int | None = None
) -> Placement:
    """The candidates that survive by the densities that ``query`` gives, and the features that it left of them."""
    found = query(rays, candidates, pruning.early_stop_eps)
    check_instance("query", found, Densities)
    return prune_found(found, candidates, pruning, capacity)


def prune_found(found: Densities, candidates: PackedSamples, pruning: Pruning, capacity: int | None = None) -> Placement:
    """:func:`prune_by` of densities that are there already, for thresholds that depend on them."""
    values, features = found
    samples, sources = prune_from(
        values.float(),
        candidates,
        early_stop_eps=pruning.early_stop_eps,
        alpha_thre=pruning.alpha_thre,
        capacity=capacity,
    )
    return Placement(samples, evaluated=None if features is None else Evaluated(features, sources))


def prune(
    densities: Tensor,
    samples: PackedSamples,
    *,
    early_stop_eps: float = 1e-4,
    alpha_thre: float | Tensor = 0.0,
    capacity: int | None = None,
) -> PackedSamples:
    """The visible samples; see :func:`prune_from`, which also says where they come from."""
    return prune_from(densities, samples, early_stop_eps=early_stop_eps, alpha_thre=alpha_thre, capacity=capacity)[0]


def _visible(
    densities: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    alpha_thre: Tensor,
    first: int,
    last: int,
) -> tuple[Tensor, Tensor]:
    """Indices of the visible samples and their rays."""
    sizes = offsets.diff()
    ray = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    n = len(ray)
    lengths = t_ends[:n] - t_starts[:n]
    inside = torch.where((densities[:n] > 0) & (lengths > 0), densities[:n].double() * lengths.double(), 0.0)
    limit = -math.log(early_stop_eps) if early_stop_eps > 0 else math.inf
    # What exceeds the limit may do so a little only: sums over all rays would lose the small next to the huge. And an
    # infinite depth would make later rays' differences of the running sum NaN: sum the finite, count the infinite.
    depths = inside.clamp(max=2 * max(limit, 0.0) + 1)
    opaque = depths.isinf()
    before = exclusive_sum(torch.where(opaque, 0.0, depths), ray, offsets)
    before = torch.where(exclusive_sum(opaque.double(), ray, offsets) > 0, math.inf, before)
    place = torch.arange(n, device=ray.device) - offsets[ray]
    chosen = (place >= first) & (place < last)
    index = (chosen & (before <= limit) & (inside >= -torch.log1p(-alpha_thre.double()))).nonzero()[:, 0]
    return index, ray[index]


def count_reference(
    densities: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    alpha_thre: Tensor,
    first: int,
    last: int,
) -> Tensor:
    _, ray = _visible(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last)
    return torch.bincount(ray, minlength=len(offsets) - 1).int()


def write_reference(
    densities: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    alpha_thre: Tensor,
    first: int,
    last: int,
    new_offsets: Tensor,
    n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, ray = _visible(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last)
    fits = new_offsets.diff()[ray] > 0  # nothing of rays that are not kept
    index, ray = index[fits], ray[fits]
    new_starts, new_ends = t_starts.new_zeros(n), t_ends.new_zeros(n)
    ray_indices, sources = offsets.new_zeros(n), offsets.new_zeros(n)
    new_starts[: len(index)] = t_starts[index]
    new_ends[: len(index)] = t_ends[index]
    ray_indices[: len(index)] = ray.int()
    sources[: len(index)] = index.int()
    return new_starts, new_ends, ray_indices, sources


def pack_visible_reference(
    densities: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    kept: Tensor,
    early_stop_eps: float,
    alpha_thre: Tensor,
    first: int,
    last: int,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last)
    new_offsets, fits = pack_reference(count_reference(*arguments), capacity)
    new_starts, new_ends, ray_indices, sources = write_reference(*arguments, new_offsets, capacity)
    return new_starts, new_ends, ray_indices, new_offsets, fits & kept, sources


def count_fake(densities: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor, *_: object) -> Tensor:
    return offsets.new_empty(offsets.shape[0] - 1)


def write_fake(densities: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = arguments[-1]
    t_starts, t_ends = densities.new_empty(n), densities.new_empty(n)
    return t_starts, t_ends, densities.new_empty(n, dtype=torch.int32), densities.new_empty(n, dtype=torch.int32)


def pack_visible_fake(
    densities: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor, kept: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    new_starts, new_ends, ray_indices, sources = write_fake(densities, *arguments)
    return new_starts, new_ends, ray_indices, torch.empty_like(offsets), torch.empty_like(kept), sources


_WINDOW = "float early_stop_eps, Tensor alpha_thre, int first, int last"
_ARGUMENTS = f"Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, {_WINDOW}"
_SURVIVORS = "Tensor t_starts, Tensor t_ends, Tensor ray_indices"
library.define("visibility_count", f"({_ARGUMENTS}) -> Tensor", count_reference, count_fake)
library.define(
    "visibility_write",
    f"({_ARGUMENTS}, Tensor new_offsets, int n) -> ({_SURVIVORS}, Tensor sources)",
    write_reference,
    write_fake,
)
library.define(
    "visibility_pack",
    f"(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor kept, {_WINDOW}, int capacity) -> "
    f"({_SURVIVORS}, Tensor new_offsets, Tensor new_kept, Tensor sources)",
    pack_visible_reference,
    pack_visible_fake,
)
