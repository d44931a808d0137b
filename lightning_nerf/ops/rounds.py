"""What happens between the fields of rounds that put a fixed number of samples on each ray, in one kernel each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_nerf.checks import BadArgument, check_integer, check_number, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.pack import MAX_COUNT, check_capacity
from lightning_nerf.ops.pack import reference as pack_reference

SPACINGS = ("places", "uniform", "disparity")  # what edges are: places already, or shares of the way in t or in 1 / t


class Chosen(NamedTuple):
    """K rays that get samples, in the order of all R rays. The last entries may be unused: ray 0, near and far 0."""

    rays: Tensor  # [K] int64, index of the ray
    near: Tensor  # [K] float32, of the interval to sample
    far: Tensor  # [K] float32
    used: Tensor  # [K] bool
    offsets: Tensor  # [R + 1] int32, CSR: ray r owns the entries ``offsets[r]`` to ``offsets[r + 1]``, one or none
    kept: Tensor  # [R] bool, see PackedSamples


def round_rays(near: Tensor, far: Tensor, most: int | None = None, *, nearest: float = 0.0) -> Chosen:
    """The rays whose interval is not empty and finite: at most the first ``most`` of them, in their order.

    Args:
        near: [R] float32, where each ray's interval begins.
        far: [R] float32, where it ends.
        most: rays that get samples, >= 0; None: all.
        nearest: > 0: where an interval begins at 0 or below, it begins at this share of ``far`` instead. 0: it does not.

    Returns:
        ``Chosen`` of K = min(most, R) entries, the unused ones last. Nothing is synchronized.

    >>> import torch
    >>> from lightning_nerf.ops.rounds import round_rays
    >>> inf = float("inf")
    >>> chosen = round_rays(torch.tensor([1.0, inf, 2.0]), torch.tensor([9.0, inf, 5.0]))
    >>> chosen.rays, chosen.used
    (tensor([0, 2, 0]), tensor([ True,  True, False]))
    """
    check_tensor("near", near, ("R",), torch.float32)
    check_tensor("far", far, (len(near),), torch.float32)
    check_same_device(near=near, far=far)
    check_number("nearest", nearest, "[0, inf)")
    if most is not None:
        check_capacity(most)
    capacity = MAX_COUNT if most is None else most
    near, far = near.detach().contiguous(), far.detach().contiguous()
    return Chosen(*torch.ops.lightning_nerf.round_rays(near, far, capacity, min(len(near), capacity), float(nearest)))


def round_samples(
    chosen: Chosen, edges: Tensor, spacing: str = "places", capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The intervals between edges [K, n + 1] of chosen rays as one list, ray by ray.

    Args:
        chosen: the rays of the K rows.
        edges: [K, n + 1] float32, rising; of "places" in t, else in [0, 1], shares of the way from near to far.
        spacing: "places", "uniform", even in t, or "disparity", even in 1 / t, for which near must be > 0.
        capacity: length of the list, at least K n; None: K n. The tail is zero.

    Returns:
        ``t_starts``, ``t_ends`` [N] float32, ``ray_indices`` [N] int32 and ``offsets`` [R + 1] int32, as of
        :class:`~lightning_nerf.PackedSamples`; unused rows are zero. No derivative, nothing is synchronized.

    Raises:
        ValueError: wrong shape or dtype, more than 2**31 - 1 samples, or more than fit.

    >>> import torch
    >>> from lightning_nerf.ops.rounds import round_rays, round_samples
    >>> chosen = round_rays(torch.tensor([1.0]), torch.tensor([3.0]))
    >>> round_samples(chosen, torch.tensor([[0.0, 0.5, 1.0]]), "disparity")[0]
    tensor([1.0000, 1.5000])
    """
    check_tensor("edges", edges, (len(chosen.rays), "n + 1"), torch.float32)
    if spacing not in SPACINGS:
        raise BadArgument(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")
    n = edges.shape[1] - 1
    size = len(edges) * n
    if size >= 2**31:
        raise BadArgument(f"rays: expected fewer than 2**31 samples in all, got {len(edges)} rays of {n}")
    capacity = size if capacity is None else capacity
    if capacity < size:
        raise BadArgument(f"capacity: expected at least {len(edges)} rays of {n} samples, got {capacity}")
    rays, near, far, used, offsets, _ = chosen
    return torch.ops.lightning_nerf.round_samples(
        edges.detach().contiguous(), rays, near, far, used, offsets, SPACINGS.index(spacing), capacity
    )


def round_cdfs(
    weights: Tensor, key: Tensor | None = None, *, padding: float = 0.0, anneal_steps: int = 0, anneal_slope: float = 1.0
) -> Tensor:
    r"""CDFs [K, n + 1], which begin at 0, of :math:`(w_i + padding)^a` for weights [K, n].

    The power a grows from 0 to 1 in ``anneal_steps`` steps: :math:`a = b f / ((b - 1) f + 1)` with ``anneal_slope`` b and
    the share f of these steps that lies behind the step in ``key`` [3]. Without key, and for ``anneal_steps`` 0, it is 1.
    No derivative, nothing is synchronized; sums are float64, rounded once.

    >>> import torch
    >>> from lightning_nerf.ops.rounds import round_cdfs
    >>> round_cdfs(torch.tensor([[0.25, 0.0, 0.5]]), padding=0.25)
    tensor([[0.0000, 0.5000, 0.7500, 1.5000]])

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 18.
    """
    check_tensor("weights", weights, ("K", "n"), torch.float32)
    check_number("padding", padding, "[0, inf)")
    check_integer("anneal_steps", anneal_steps, 0)
    check_number("anneal_slope", anneal_slope, "(0, inf)")
    if key is not None:
        check_tensor("key", key, (3,), torch.int64)
        check_same_device(weights=weights, key=key)
    weights = weights.detach().contiguous()
    return torch.ops.lightning_nerf.round_cdfs(weights, key, float(padding), anneal_steps, float(anneal_slope))


def round_counting(counts: Tensor, ray_indices: Tensor, offsets: Tensor, k: int, n: int) -> Tensor:
    """Which of K rows of n samples are in use and of a ray that counts, [K] bool.

    Args:
        counts: [R] bool, rays that count.
        ray_indices: [N] int32, the rays of a list that begins with the rows' samples, N >= K n.
        offsets: [R + 1] int32, CSR; the list has ``offsets[R]`` samples.
        k, n: the number of rows, and of samples in each, >= 1.

    >>> import torch
    >>> from lightning_nerf.ops.rounds import round_counting
    >>> rays, offsets = torch.tensor([0, 0, 2, 2, 0, 0]), torch.tensor([0, 2, 2, 4])
    >>> round_counting(torch.tensor([False, True, True]), rays.int(), offsets.int(), 3, 2)
    tensor([False,  True, False])
    """
    check_tensor("counts", counts, ("R",), torch.bool)
    check_tensor("ray_indices", ray_indices, ("N",), torch.int32)
    check_tensor("offsets", offsets, (len(counts) + 1,), torch.int32)
    check_integer("n", n, 1)
    check_integer("k", k, 0, len(ray_indices) // n)
    check_same_device(counts=counts, ray_indices=ray_indices, offsets=offsets)
    tensors = (each.contiguous() for each in (counts, ray_indices, offsets))
    return torch.ops.lightning_nerf.round_counting(*tensors, k, n)


def rays_reference(near: Tensor, far: Tensor, capacity: int, count: int, nearest: float) -> tuple[Tensor, ...]:
    active = (near < far) & near.isfinite() & far.isfinite()  # a miss has both at inf
    offsets, kept = pack_reference(active.int(), capacity)
    slots = torch.arange(count, dtype=torch.int32, device=near.device)
    used = slots < offsets[-1]
    index = torch.where(used, torch.searchsorted(offsets[1:].contiguous(), slots, right=True), 0)
    near, far = torch.where(used, near[index], 0.0), torch.where(used, far[index], 0.0)
    if nearest > 0:
        near = torch.where(used & (near <= 0), nearest * far, near)
    return index, near, far, used, offsets, kept


def places_reference(edges: Tensor, near: Tensor, far: Tensor, used: Tensor, spacing: int) -> Tensor:
    """Where edges [K, m] lie on their rays."""
    used, near, far = used[:, None], near[:, None], far[:, None]
    if SPACINGS[spacing] == "places":
        places = edges
    elif SPACINGS[spacing] == "uniform":
        places = torch.lerp(near, far, edges)
    else:
        places = even_places(edges, near, far, used, torch.reciprocal, torch.reciprocal)
    return torch.where(used, places, 0.0)


def even_places(
    edges: Tensor,
    near: Tensor,
    far: Tensor,
    used: Tensor,
    number: Callable[[Tensor], Tensor],
    place: Callable[[Tensor], Tensor],
) -> Tensor:
    """Places [K, m] float32 whose ``number`` goes evenly from near to far [K, 1] with the edges; ``place`` is its inverse.

    Both take float64 and are monotone. Rows that are not used [K, 1] hold anything.
    """
    # float64: far may be a million times near. Each operation is monotone, and so are the places.
    first, last = (number(torch.where(used, t, 1.0).double()) for t in (near, far))
    return place(torch.addcmul(first, edges.double(), last - first)).float().clamp(near, far)


def samples_reference(
    edges: Tensor, rays: Tensor, near: Tensor, far: Tensor, used: Tensor, entries: Tensor, spacing: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = edges.shape[1] - 1
    size = len(edges) * n
    places = places_reference(edges, near, far, used, spacing)
    indices = rays.int()[:, None].expand(-1, n)
    t_starts, t_ends, ray_indices = (
        pad(each.reshape(size), (0, capacity - size)) for each in (places[:, :-1], places[:, 1:], indices)
    )
    return t_starts, t_ends, ray_indices, entries * n


def cdfs_reference(weights: Tensor, key: Tensor | None, padding: float, anneal_steps: int, anneal_slope: float) -> Tensor:
    density = weights + padding
    if key is not None and anneal_steps > 0:
        share = (key[2] / anneal_steps).clamp(max=1.0)
        density = density ** (anneal_slope * share / ((anneal_slope - 1) * share + 1))
    return pad(density.double().cumsum(1).float(), (1, 0))


def counting_reference(counts: Tensor, ray_indices: Tensor, offsets: Tensor, k: int, n: int) -> Tensor:
    used = torch.arange(k, device=counts.device) < offsets[-1] // n
    if len(counts) == 0:
        return torch.zeros_like(used)
    return counts[torch.where(used, ray_indices[: k * n : n], 0)] & used


def _fake_rays(near: Tensor, far: Tensor, capacity: int, count: int, nearest: float) -> tuple[Tensor, ...]:
    rays, used = near.new_empty(count, dtype=torch.int64), near.new_empty(count, dtype=torch.bool)
    offsets = near.new_empty(near.shape[0] + 1, dtype=torch.int32)
    return rays, near.new_empty(count), near.new_empty(count), used, offsets, torch.empty_like(near, dtype=torch.bool)


def _fake_samples(
    edges: Tensor, rays: Tensor, near: Tensor, far: Tensor, used: Tensor, entries: Tensor, spacing: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    starts, ends = edges.new_empty(capacity), edges.new_empty(capacity)
    return starts, ends, entries.new_empty(capacity), torch.empty_like(entries)


library.define(
    "round_rays",
    "(Tensor near, Tensor far, int capacity, int count, float nearest) "
    "-> (Tensor rays, Tensor row_near, Tensor row_far, Tensor used, Tensor offsets, Tensor kept)",
    rays_reference,
    _fake_rays,
)
library.define(
    "round_samples",
    "(Tensor edges, Tensor rays, Tensor near, Tensor far, Tensor used, Tensor entries, int spacing, int capacity) "
    "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets)",
    samples_reference,
    _fake_samples,
)
library.define(
    "round_cdfs",
    "(Tensor weights, Tensor? key, float padding, int anneal_steps, float anneal_slope) -> Tensor",
    cdfs_reference,
    lambda weights, *_: weights.new_empty(weights.shape[0], weights.shape[1] + 1),
)
library.define(
    "round_counting",
    "(Tensor counts, Tensor ray_indices, Tensor offsets, int k, int n) -> Tensor",
    counting_reference,
    lambda counts, ray_indices, offsets, k, n: counts.new_empty(k),
)
