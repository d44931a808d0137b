"""Resampling of intervals along rays by the inverse of a CDF, and the search for a value's neighbors that goes with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.segments import check_packed_info, owners


class Resampled(NamedTuple):
    """New intervals along rays: their edges, and a sample in each."""

    samples: Tensor  # [..., n], or [M] where each ray has its own number of samples
    edges: Tensor  # [..., n + 1], or [M + rays with samples]
    sample_offsets: Tensor | None = None  # [R + 1] int64, in the second case
    edge_offsets: Tensor | None = None  # [R + 1] int64


def searchsorted(
    keys: Tensor, queries: Tensor, *, packed_info: Tensor | None = None, query_rays: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The neighbors of each query among its ray's sorted keys: ``keys[left] <= query < keys[right]``, next to each other.

    A query outside its ray's keys counts as the nearest of them; the last key's neighbors are the last two. NaN counts as
    above. A single key is both neighbors, and where there is none both are the place where the first would stand.

    Args:
        keys: [..., K], ascending along the last dimension; or [N], all rays' keys in one list, with ``packed_info``.
        queries: [..., Q] with the leading dimensions of rays; or [M], with ``query_rays``.
        packed_info: [R, 2] int64, begin and count of each ray's keys in [N].
        query_rays: [M] int64, the ray of each query. Outside [0, R): both results are -1.

    Dtypes: float32; half precision is compared as float32, float64 by :func:`searchsorted_reference`.

    Returns:
        ``(left, right)``, int64 in the shape of ``queries``. They count from the ray's first key, or where queries come in
        one list from the first key of all, as indices into flattened keys. No derivative, nothing is synchronized.

    Raises:
        ValueError: wrong shape, dtype or device, or a number of rays that differs.
    """
    keys, n_rays = _check_lists("keys", keys, packed_info)
    check_same_device(keys=keys, queries=queries, packed_info=packed_info, query_rays=query_rays)
    if query_rays is not None:
        check_tensor("queries", queries, ("M",), FLOATS)
        check_tensor("query_rays", query_rays, (queries.shape[0],), torch.int64)
        query_rays = query_rays.contiguous()
    elif queries.dtype not in FLOATS or queries.ndim < 2 or queries.shape[:-1].numel() != n_rays:
        raise BadArgument(
            f"queries: expected floats of shape [..., Q] for {n_rays} rays, got {queries.dtype} of {list(queries.shape)}"
        )
    double = torch.float64 in (keys.dtype, queries.dtype)
    search = searchsorted_reference if double else torch.ops.lightning_nerf.searchsorted
    packed_info = None if packed_info is None else packed_info.contiguous()
    left, right = search(_flat(keys, double), packed_info, n_rays, _flat(queries, double), query_rays, query_rays is None)
    return left.view(queries.shape), right.view(queries.shape)


def importance_sampling(
    edges: Tensor,
    cdfs: Tensor,
    n_samples: int | Tensor,
    *,
    packed_info: Tensor | None = None,
    jitter: Tensor | None = None,
) -> Resampled:
    """Split each ray anew so that every new interval holds the same share of the weight that a CDF gives its old ones.

    Sample k of a ray's n lies at ``u_k = F_0 + (k + jitter) / n (F_last - F_0)`` of the CDF F, which is linear between the
    edges; the CDF need neither begin at 0 nor end at 1. New edges lie midway between samples; the outermost are as far from
    their samples as these are from the next edges, at most at the ray's first and last old edge. One sample: its interval
    is all of the ray. Where F does not rise between two edges, their middle is taken.

    A CDF that says nothing (it does not rise from the ray's first edge to its last, or holds a value that is not finite)
    counts as uniform in t from the first edge to the last. A ray without edges has them all at 0.

    Args:
        edges: [..., E], ascending along the last dimension; or [N], all rays' edges in one list, with ``packed_info``.
        cdfs: at the edges, in their shape, never falling.
        n_samples: for each ray; or a tensor [R] int64 or int32 of their numbers (one host synchronization on CUDA: the
            size of what is returned depends on it). A ray of 0 has no new edges then, and one without meaning otherwise.
        packed_info: [R, 2] int64, begin and count of each ray's edges in [N].
        jitter: [R] in [0, 1), shared by a ray's samples; None: 0.5, the middle of each stratum.

    Dtypes: float32; half precision is computed in float32, float64 by :func:`importance_reference`.

    Returns:
        :class:`Resampled`, in the dtype of ``edges`` and without derivative: where to look is not to be learned through
        what is seen there.

    Raises:
        ValueError: wrong shape, dtype or device, or a negative number of samples.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, section 3; the convention of samples and edges is NerfAcc's.
    """
    edges, n_rays = _check_lists("edges", edges, packed_info)
    check_tensor("cdfs", cdfs, tuple(edges.shape), FLOATS)
    if jitter is not None:
        check_tensor("jitter", jitter, (n_rays,), FLOATS)
    several = isinstance(n_samples, Tensor)
    check_same_device(
        edges=edges, cdfs=cdfs, packed_info=packed_info, jitter=jitter, n_samples=n_samples if several else None
    )
    if several:
        check_tensor("n_samples", n_samples, (n_rays,), (torch.int64, torch.int32))
        counts = n_samples.long()
        ends = torch.stack([counts, torch.where(counts > 0, counts + 1, 0)]).cumsum(1)
        offsets = torch.cat([ends.new_zeros(2, 1), ends], 1)
        total, total_edges, negative = torch.cat([offsets[:, -1], (counts < 0).any()[None]]).tolist()
        if negative:
            raise BadArgument("n_samples: expected numbers >= 0, got a negative one")
        sample_offsets, edge_offsets = offsets.unbind(0)
        shapes = (total,), (total_edges,)
    else:
        if n_samples < 0:
            raise BadArgument(f"n_samples: expected >= 0, got {n_samples}")
        sample_offsets = edge_offsets = None
        leading = edges.shape[:-1] if packed_info is None else (n_rays,)
        total, total_edges = n_rays * n_samples, n_rays * (n_samples + 1)
        shapes = (*leading, n_samples), (*leading, n_samples + 1)
    double = edges.dtype == torch.float64
    resample = importance_reference if double else torch.ops.lightning_nerf.importance_sampling
    samples, new_edges = resample(
        _flat(edges, double),
        _flat(cdfs, double),
        None if packed_info is None else packed_info.contiguous(),
        n_rays,
        sample_offsets,
        edge_offsets,
        total,
        total_edges,
        None if jitter is None else _flat(jitter, double),
    )
    samples, new_edges = (v.to(edges.dtype).view(shape) for v, shape in zip((samples, new_edges), shapes, strict=True))
    return Resampled(samples, new_edges, sample_offsets, edge_offsets)


def _flat(values: Tensor, double: bool) -> Tensor:
    return values.detach().to(torch.float64 if double else torch.float32).flatten().contiguous()


def _check_lists(name: str, values: Tensor, packed_info: Tensor | None) -> tuple[Tensor, int]:
    """The values of all rays, and the number of rays."""
    if packed_info is not None:
        check_tensor(name, values, ("N",), FLOATS)
        check_packed_info("packed_info", packed_info, values.shape[0])
        return values, packed_info.shape[0]
    if values.dtype not in FLOATS or values.ndim < 2:
        got = f"{values.dtype} of {list(values.shape)}"
        raise BadArgument(f"{name}: expected floats of shape [..., n], or [N] with packed_info, got {got}")
    return values, values.shape[:-1].numel()


def _bounds(values: Tensor, packed_info: Tensor | None, n_rays: int) -> tuple[Tensor, Tensor]:
    """Begin and count of each ray's values, [R] int64 both."""
    n = values.shape[0]
    if packed_info is None:
        width = n // n_rays if n_rays else 0
        return torch.arange(n_rays, device=values.device) * width, torch.full((n_rays,), width, device=values.device)
    begins = packed_info[:, 0].clamp(0, n)
    return begins, (packed_info.sum(1).clamp(0, n) - begins).clamp(min=0)


def _brackets(values: Tensor, begins: Tensor, counts: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """left, right as of :func:`searchsorted`, for each x among ``values[begin : begin + count]``."""
    low, high = begins, begins + (counts - 1).clamp(min=0)
    if values.shape[0] > 0:
        first = values[begins.clamp(max=values.shape[0] - 1)]
        x = torch.where(x < first, first, x)
    for _ in range(values.shape[0].bit_length()):
        middle = low + (high - low) // 2
        above = values[middle.clamp(max=values.shape[0] - 1)] > x
        open_ = low < high
        low, high = torch.where(open_ & ~above, middle + 1, low), torch.where(open_ & above, middle, high)
    return torch.maximum(low - 1, begins), low


def searchsorted_reference(
    keys: Tensor, packed_info: Tensor | None, n_rays: int, queries: Tensor, query_rays: Tensor | None, relative: bool
) -> tuple[Tensor, Tensor]:
    n = queries.shape[0]
    if n_rays == 0 or n == 0:
        none = queries.new_full((n,), -1, dtype=torch.int64)
        return none, none.clone()
    rays = torch.arange(n, device=keys.device) // (n // n_rays) if query_rays is None else query_rays
    exists = (rays >= 0) & (rays < n_rays)
    begins, counts = (b[rays.clamp(0, n_rays - 1)] for b in _bounds(keys, packed_info, n_rays))
    first = begins if relative else 0
    left, right = (torch.where(exists, i - first, -1) for i in _brackets(keys, begins, counts, queries))
    return left, right


def importance_reference(
    edges: Tensor,
    cdfs: Tensor,
    packed_info: Tensor | None,
    n_rays: int,
    sample_offsets: Tensor | None,
    edge_offsets: Tensor | None,
    n_samples: int,
    n_edges: int,
    jitter: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Without sums: the same operations in the same order as the kernels, so that these can be compared to the bit."""
    device, n = edges.device, edges.shape[0]
    if n_rays == 0:
        return edges.new_zeros(n_samples), edges.new_zeros(n_edges)
    if sample_offsets is None or edge_offsets is None:
        each = torch.arange(n_rays + 1, device=device)
        sample_offsets, edge_offsets = each * (n_samples // n_rays), each * (n_samples // n_rays + 1)
    begins, counts = _bounds(edges, packed_info, n_rays)
    owner = owners(n, torch.stack([begins, counts], 1))
    odd = (~cdfs.isfinite()).to(edges.dtype)
    bad = edges.new_zeros(n_rays + 1).index_add(0, owner % (n_rays + 1), odd)[:-1] > 0
    edges, cdfs = torch.cat([edges, edges.new_zeros(1)]), torch.cat([cdfs, cdfs.new_zeros(1)])
    outermost = torch.where(counts > 0, torch.stack([begins, begins + counts - 1]), n)
    (first, last), (low, high) = edges[outermost], cdfs[outermost]

    of_ray = sample_offsets.diff()
    ray = torch.arange(n_rays, device=device).repeat_interleave(of_ray, output_size=n_samples)
    k = torch.arange(n_samples, device=device) - sample_offsets[ray]
    uniform = bad | ~(high > low)
    step = torch.where(uniform, 1.0, high - low) / of_ray
    u = torch.where(uniform, 0.0, low)[ray] + (k.to(edges.dtype) + (0.5 if jitter is None else jitter[ray])) * step[ray]
    i, j = _brackets(cdfs, begins[ray], counts[ray], u)
    mass = cdfs[j] - cdfs[i]
    share = torch.where(mass > 0, (u - cdfs[i]) / mass, 0.5)
    share = torch.where(share > 0, share.clamp(max=1.0), 0.0)
    share = torch.where(uniform[ray], u, share)
    left, right = torch.where(uniform[ray], first[ray], edges[i]), torch.where(uniform[ray], last[ray], edges[j])
    samples = left + share * (right - left)
    samples = torch.where(samples < right, samples, right)

    ray = torch.arange(n_rays, device=device).repeat_interleave(edge_offsets.diff(), output_size=n_edges)
    k = torch.arange(n_edges, device=device) - edge_offsets[ray]
    of_ray = of_ray[ray]

    def sample(k: Tensor) -> Tensor:
        padded = torch.cat([samples, samples.new_zeros(1)])
        return padded[(sample_offsets[ray] + k).clamp(0, n_samples)]

    before, at, first, last = sample(k - 1), sample(k), first[ray], last[ray]
    outer_first, outer_last = at - (sample(k + 1) - at) * 0.5, before + (before - sample(k - 2)) * 0.5
    outer_first = torch.where((of_ray > 1) & (outer_first > first), outer_first, first)
    outer_last = torch.where((of_ray > 1) & (outer_last < last), outer_last, last)
    new_edges = torch.where(k == 0, outer_first, torch.where(k == of_ray, outer_last, (before + at) * 0.5))
    return samples, new_edges


def _fake_searchsorted(
    keys: Tensor, packed_info: Tensor | None, n_rays: int, queries: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries, dtype=torch.int64), torch.empty_like(queries, dtype=torch.int64)


def _fake_importance(edges: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    n_samples, n_edges = args[5:7]
    return edges.new_empty(n_samples), edges.new_empty(n_edges)


library.define(
    "searchsorted",
    "(Tensor keys, Tensor? packed_info, int n_rays, Tensor queries, Tensor? query_rays, bool relative) "
    "-> (Tensor left, Tensor right)",
    searchsorted_reference,
    _fake_searchsorted,
)
library.define(
    "importance_sampling",
    "(Tensor edges, Tensor cdfs, Tensor? packed_info, int n_rays, Tensor? sample_offsets, Tensor? edge_offsets, "
    "int n_samples, int n_edges, Tensor? jitter) -> (Tensor samples, Tensor new_edges)",
    importance_reference,
    _fake_importance,
)
