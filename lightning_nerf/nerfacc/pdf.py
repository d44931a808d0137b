"""``nerfacc.pdf``: importance sampling of intervals along rays."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_nerf.checks import BadArgument, BadType, check_tensor
from lightning_nerf.nerfacc.data_specs import RayIntervals, RaySamples
from lightning_nerf.nerfacc.errors import argument_errors
from lightning_nerf.nerfacc.pack import pack_info
from lightning_nerf.ops import importance
from lightning_nerf.ops.segments import owners


@argument_errors
def searchsorted(sorted_sequence: RayIntervals | RaySamples, values: RayIntervals | RaySamples) -> tuple[Tensor, Tensor]:
    """Find each value's neighbors in the sequence of its ray.

    They are next to each other, with ``sequence[left] <= value < sequence[right]``.

    Args:
        sorted_sequence: ascending along each ray.
        values: of the same rays; rows and lists may be mixed.

    Returns:
        ``(ids_left, ids_right)``, int64 in the shape of ``values.vals``. For values in rows they count from the ray's first
        entry, for values in one list from the first entry of all rays. A value outside the sequence gets the two entries
        at that end, a value of no ray -1. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape, dtype or device, or a list without ``packed_info`` and ``ray_indices``.

    >>> sequence = nerfacc.RayIntervals(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    >>> nerfacc.searchsorted(sequence, nerfacc.RaySamples(torch.tensor([[0.5, 2.0, 9.0]])))
    (tensor([[0, 2, 2]]), tensor([[1, 3, 3]]))
    """
    packed_info, query_rays = _packed_info(sorted_sequence), None
    _check_vals("values", values)
    if values.vals.ndim == 1:
        query_rays = values.ray_indices
        if query_rays is None:
            if values.packed_info is None:
                raise BadArgument("values: expected packed_info or ray_indices with vals in one list, got neither")
            query_rays = owners(len(values.vals), values.packed_info.long())
        check_tensor("ray_indices", query_rays, (len(values.vals),), (torch.int64, torch.int32))
        query_rays = query_rays.long()
    return importance.searchsorted(sorted_sequence.vals, values.vals, packed_info=packed_info, query_rays=query_rays)


@argument_errors
@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals, cdfs: Tensor, n_intervals_per_ray: Tensor | int, stratified: bool = False
) -> tuple[RayIntervals, RaySamples]:
    """Split each ray anew into intervals that hold equal shares of its weight, with a sample in each.

    With F the CDF, which is linear between the edges, sample k of a ray's n lies where
    ``F = F_first + (k + 1/2) / n (F_last - F_first)``; new edges lie midway between samples.

    Args:
        intervals: the old edges, in rows [..., n_edges] or in one list.
        cdfs: F at the edges, in the shape of ``intervals.vals``, never falling.
            :func:`lightning_nerf.ops.importance.importance_sampling` says what a CDF that does not rise means.
        n_intervals_per_ray: n, for all rays; or a tensor [R] (on CUDA the host waits for it once).
        stratified: put one random number in [0, 1), from ``torch.rand``, in the place of the 1/2 of each ray.

    Returns:
        ``(intervals, samples)``. For a number n, rows: [..., n + 1] and [..., n], or [R, n + 1] and [R, n] if the old ones
        come in one list. For a tensor, one list each, with ``packed_info``, ``ray_indices``, ``is_left`` and ``is_right``;
        rays of 0 intervals have no entries. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape, dtype or device, or a negative number of intervals.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, section 3.

    >>> edges, cdfs = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> intervals, samples = nerfacc.importance_sampling(nerfacc.RayIntervals(edges), cdfs, 4)
    >>> samples.vals  # all of the weight is between 1 and 2
    tensor([[1.1250, 1.3750, 1.6250, 1.8750]])
    """
    vals, packed_info = intervals.vals, _packed_info(intervals)
    if cdfs.numel() != vals.numel():
        raise BadArgument(f"cdfs: expected shape {list(vals.shape)} as intervals.vals, got {list(cdfs.shape)}")
    n_rays = vals.shape[:-1].numel() if packed_info is None else len(packed_info)
    several = isinstance(n_intervals_per_ray, Tensor)
    number = n_intervals_per_ray.flatten() if several else operator.index(n_intervals_per_ray)
    jitter = torch.rand(n_rays, dtype=torch.float32, device=vals.device) if stratified else None
    samples, edges, sample_offsets, edge_offsets = importance.importance_sampling(
        vals, cdfs.reshape(vals.shape), number, packed_info=packed_info, jitter=jitter
    )
    if sample_offsets is None or edge_offsets is None:
        return RayIntervals(edges), RaySamples(samples)
    rays_of_edges, rays_of_samples = (
        torch.arange(n_rays, device=vals.device).repeat_interleave(offsets.diff(), output_size=len(values))
        for offsets, values in ((edge_offsets, edges), (sample_offsets, samples))
    )
    same = torch.zeros(len(edges) + 1, dtype=torch.bool, device=vals.device)  # is an edge's left neighbor of its ray?
    same[1:-1] = rays_of_edges[1:] == rays_of_edges[:-1]
    edges_info, samples_info = (torch.stack([o[:-1], o.diff()], 1) for o in (edge_offsets, sample_offsets))
    return (
        RayIntervals(edges, edges_info, rays_of_edges, is_left=same[1:], is_right=same[:-1]),
        RaySamples(samples, samples_info, rays_of_samples),
    )


def _packed_info(values: RayIntervals | RaySamples) -> Tensor | None:
    """[n_rays, 2] int64 of values in one list; None for rows."""
    _check_vals("vals", values)
    if values.vals.ndim != 1:
        return None
    if values.packed_info is not None:
        check_tensor("packed_info", values.packed_info, ("n_rays", 2), (torch.int64, torch.int32))
        return values.packed_info.long()
    if values.ray_indices is not None:
        return pack_info(values.ray_indices)
    raise BadArgument("vals: expected packed_info or ray_indices with values in one list, got neither")


def _check_vals(name: str, values: RayIntervals | RaySamples) -> None:
    if not isinstance(values.vals, Tensor):
        raise BadType(f"{name}: expected a tensor of values, got {type(values.vals).__name__}")


def _sample_from_weighted(
    bins: Tensor,
    weights: Tensor,
    num_samples: int,
    stratified: bool = False,
    vmin: float | Tensor = -torch.inf,
    vmax: float | Tensor = torch.inf,
) -> tuple[Tensor, Tensor]:
    """The same by plain torch functions, for comparison, of weights [..., B] in bins with edges [..., B + 1].

    Args:
        num_samples: at least 2, which make an interval.

    Returns:
        new edges [..., num_samples + 1], within vmin and vmax, and their samples [..., num_samples].
    """
    n, eps = num_samples, torch.finfo(weights.dtype).eps
    partial = normalize(weights, p=1.0, dim=-1)[..., :-1].cumsum(-1)
    cdf = torch.cat([torch.zeros_like(weights[..., :1]), partial, torch.ones_like(weights[..., :1])], -1)
    like = {"dtype": bins.dtype, "device": bins.device}
    if stratified:  # the last stratum ends below 1
        stratum = eps + (1 - eps) / n
        room = (1 - stratum) / (n - 1) - eps
        u = torch.linspace(0, 1 - stratum, n, **like) + torch.rand(*bins.shape[:-1], 1, **like) * room
    else:
        u = torch.linspace(0.5 / n, 1 - 0.5 / n - eps, n, **like).expand(*bins.shape[:-1], n)
    right = torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True)
    left = right - 1
    u0, u1, t0, t1 = cdf.gather(-1, left), cdf.gather(-1, right), bins.gather(-1, left), bins.gather(-1, right)
    samples = t0 + (u - u0) / (u1 - u0).clamp(min=eps) * (t1 - t0)
    middles = (samples[..., 1:] + samples[..., :-1]) / 2
    first = (2 * samples[..., :1] - middles[..., :1]).clamp(min=vmin)
    last = (2 * samples[..., -1:] - middles[..., -1:]).clamp(max=vmax)
    return torch.cat([first, middles, last], -1), samples
