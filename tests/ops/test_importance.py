from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.importance import (
    importance_reference,
    importance_sampling,
    searchsorted,
    searchsorted_reference,
)
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, to

INF, NAN = float("inf"), float("nan")
ROWS = [
    (0, 5, 3),
    (1, 2, 1),
    (3, 1, 4),
    (2, 0, 3),
    (4, 7, 0),
    (5, 4, 2),
    (6, 33, 31),
    (6, 33, 32),
    (6, 40, 33),
    (5, 101, 100),
]
EXACT = {"rtol": 0.0, "atol": 0.0}


def sorted_rows(n_rays: int, width: int, seed: int) -> Tensor:
    return rand(n_rays, width, seed=seed).sort(-1).values


def ragged(counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Rays' ascending values in one list, in no order and with NaN between them, and packed_info."""
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed)).tolist()
    values, info, at = [], torch.zeros(len(counts), 2, dtype=torch.int64), 0
    for ray in order:
        values += [torch.full((2,), NAN), rand(counts[ray], seed=seed + ray).sort().values]
        info[ray] = torch.tensor([at + 2, counts[ray]])
        at += 2 + counts[ray]
    return torch.cat([*values, torch.full((3,), NAN)]), info


# --- searchsorted ---


def neighbors(keys: list[float], x: float) -> tuple[int, int]:
    """By Python's bisection, of the query drawn into the keys' range."""
    if not keys:
        return 0, 0
    right = len(keys) - 1 if math.isnan(x) else min(bisect.bisect_right(keys, max(x, keys[0])), len(keys) - 1)
    return max(right - 1, 0), right


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [0, 1, 2, 3, 64, 100])
@pytest.mark.parametrize("n_queries", [0, 1, 50])
def test_rows_of_queries_in_rows_of_keys(device: str, width: int, n_queries: int) -> None:
    keys, queries = sorted_rows(4, width, 1), rand(4, n_queries, seed=2, low=-0.3, high=1.3)
    if width and n_queries > 9:
        queries[:, :9] = torch.stack([keys[:, i % width] for i in range(9)], 1)  # at keys exactly
        queries[0, 9] = NAN
    args = (keys.flatten(), None, 4, queries.flatten(), None, True)
    check_op("searchsorted", searchsorted_reference, args, device=device, **EXACT, opcheck=width == 3)
    left, right = searchsorted(keys.to(device), queries.to(device))
    assert left.shape == right.shape == queries.shape
    expected = [neighbors(k, q) for k, row in zip(keys.tolist(), queries.tolist(), strict=True) for q in row]
    assert list(zip(left.flatten().tolist(), right.flatten().tolist(), strict=True)) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counts", [[], [0], [4], [3, 0, 1, 2, 40]])
def test_lists_of_keys(device: str, counts: list[int]) -> None:
    keys, info = ragged(counts, 3)
    rays = torch.randint(-2, len(counts) + 2, (60,), generator=torch.Generator().manual_seed(5))
    queries = rand(60, seed=6, low=-0.3, high=1.3)
    args = (keys, info, len(counts), queries, rays, False)
    check_op("searchsorted", searchsorted_reference, args, device=device, **EXACT)
    left, right = searchsorted(keys.to(device), queries.to(device), packed_info=info.to(device), query_rays=rays.to(device))
    for ray, x, i, j in zip(rays.tolist(), queries.tolist(), left.tolist(), right.tolist(), strict=True):
        if not 0 <= ray < len(counts):
            assert (i, j) == (-1, -1)
            continue
        begin, count = info[ray].tolist()
        a, b = neighbors(keys[begin : begin + count].tolist(), x)
        assert (i, j) == (begin + a, begin + b)


@pytest.mark.parametrize("device", DEVICES)
def test_lists_and_rows_meet(device: str) -> None:
    """Rows of queries count from their ray's first key, lists of queries from the first of all."""
    keys, rows = sorted_rows(3, 6, 1).to(device), rand(3, 5, seed=2).to(device)
    info = torch.tensor([[0, 6], [6, 6], [12, 6]], device=device)
    rays = torch.arange(3, device=device).repeat_interleave(5)
    expected = searchsorted(keys, rows)
    for i, (a, b) in enumerate(zip(expected, searchsorted(keys.flatten(), rows, packed_info=info), strict=True)):
        assert torch.equal(a, b)
        flat = searchsorted(keys, rows.flatten(), query_rays=rays)[i]
        assert torch.equal(flat, (a + torch.arange(3, device=device)[:, None] * 6).flatten())
    batched = searchsorted(keys.view(3, 1, 6), rows.view(3, 1, 5))
    assert torch.equal(batched[0], expected[0].view(3, 1, 5))


# --- importance sampling ---


def by_loops(edges: list[float], cdf: list[float], n: int, jitter: float) -> tuple[list[float], list[float]]:
    """Samples and edges of one ray in Python floats, by the definition, without a search."""
    if not edges:
        return [0.0] * n, [0.0] * (n + 1)
    low, high = cdf[0], cdf[-1]
    flat = not all(math.isfinite(c) for c in cdf) or not high > low
    samples = []
    for k in range(n):
        share = (k + jitter) / n
        if flat:
            samples.append(edges[0] + share * (edges[-1] - edges[0]))
            continue
        u = low + share * (high - low)
        i = max(i for i in range(len(edges) - 1) if cdf[i] <= u)
        mass = cdf[i + 1] - cdf[i]
        within = (u - cdf[i]) / mass if mass > 0 else 0.5
        samples.append(edges[i] + within * (edges[i + 1] - edges[i]))
    if n < 2:
        return samples, [edges[0], edges[-1]][: n + 1]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(samples)]
    first, last = samples[0] - (middles[0] - samples[0]), samples[-1] + (samples[-1] - middles[-1])
    return samples, [max(first, edges[0]), *middles, min(last, edges[-1])]


def smooth(n_rays: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Edges and a CDF that rises between any two of them by 0.3 / width at least, from 0.1 to 0.9."""
    edges = 2 + sorted_rows(n_rays, width, seed)
    rises = rand(n_rays, max(width - 1, 0), seed=seed + 1, low=0.4)
    shares = torch.cat([torch.zeros(n_rays, min(width, 1)), rises.cumsum(1)], 1)
    return edges, 0.1 + 0.8 * shares / shares.amax(1, keepdim=True) if width > 1 else edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("n_rays", "width", "n"), ROWS)
def test_it_is_the_definition(device: str, n_rays: int, width: int, n: int, stratified: bool) -> None:
    edges, cdfs = smooth(n_rays, width, 7)
    jitter = rand(n_rays, seed=3) if stratified else None
    expected = [
        by_loops(e, c, n, 0.5 if jitter is None else float(jitter[i]))
        for i, (e, c) in enumerate(zip(edges.tolist(), cdfs.tolist(), strict=True))
    ]
    args = to(device, (edges, cdfs))
    out = importance_sampling(*args, n, jitter=None if jitter is None else jitter.to(device))
    assert out.samples.shape == (n_rays, n)
    assert out.edges.shape == (n_rays, n + 1)
    assert out.sample_offsets is None
    # u is off by 4 roundings of numbers below 1; t moves by at most 1 while it moves by 0.3 / width, and is below 4.
    close = {"rtol": 0.0, "atol": 2**-24 * (4 * width / 0.3 + 4 * 4)}
    for ray in range(n_rays):
        torch.testing.assert_close(out.samples[ray].cpu(), torch.tensor(expected[ray][0]), **close)
        torch.testing.assert_close(out.edges[ray].cpu(), torch.tensor(expected[ray][1]), **close)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cdf", ["rising", "steps", "level", "strange"])
@pytest.mark.parametrize(("n_rays", "width", "n"), ROWS)
def test_kernel_equals_the_reference_to_the_bit(device: str, n_rays: int, width: int, n: int, cdf: str) -> None:
    edges, cdfs = sorted_rows(n_rays, width, 1), sorted_rows(n_rays, width, 2)
    if cdf == "steps":
        cdfs = (3 * cdfs).round() / 3
    if cdf == "level":
        cdfs = torch.full_like(cdfs, 0.25)
    if cdf == "strange" and width:
        cdfs[::3, width // 2] = NAN
        cdfs[1::3, -1] = INF
    for jitter in (None, rand(n_rays, seed=3)):
        args = (edges.flatten(), cdfs.flatten(), None, n_rays, None, None, n_rays * n, n_rays * (n + 1), jitter)
        opcheck = cdf == "rising" and width in (0, 33)
        check_op("importance_sampling", importance_reference, args, device=device, **EXACT, opcheck=opcheck)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("numbers", [[5, 0, 1, 33, 2], [0] * 5, [64, 1, 31, 32, 7]])
@pytest.mark.parametrize("layout", ["rows", "lists"])
def test_each_ray_its_own_number(device: str, numbers: list[int], layout: str) -> None:
    jitter = rand(5, seed=9)
    if layout == "rows":
        edges, cdfs = smooth(5, 12, 1)
        info, each = None, [(edges[i], cdfs[i]) for i in range(5)]
    else:
        (edges, info), (cdfs, _) = ragged([4, 9, 0, 1, 30], 3), ragged([4, 9, 0, 1, 30], 3)
        cdfs = 0.2 + 0.5 * cdfs
        each = [(edges[b : b + c], cdfs[b : b + c]) for b, c in info.tolist()]
    for dtype in (torch.int64, torch.int32):
        out = importance_sampling(
            *to(device, (edges, cdfs, torch.tensor(numbers, dtype=dtype))),
            packed_info=None if info is None else info.to(device),
            jitter=jitter.to(device),
        )
        assert out.sample_offsets is not None
        assert out.edge_offsets is not None
        samples = out.samples.cpu().split(out.sample_offsets.diff().tolist())
        new_edges = out.edges.cpu().split(out.edge_offsets.diff().tolist())
        for ray, number in enumerate(numbers):
            alone = importance_sampling(each[ray][0][None], each[ray][1][None], number, jitter=jitter[ray : ray + 1])
            torch.testing.assert_close(samples[ray], alone.samples[0], **EXACT)
            torch.testing.assert_close(new_edges[ray], alone.edges[0, : number + 1 if number else 0], **EXACT)
    n, m = len(out.samples), len(out.edges)
    args = (edges.flatten(), cdfs.flatten(), info, 5, out.sample_offsets.cpu(), out.edge_offsets.cpu(), n, m, jitter)
    check_op("importance_sampling", importance_reference, args, device=device, **EXACT)


@pytest.mark.parametrize("device", DEVICES)
def test_lists_with_one_number_give_rows(device: str) -> None:
    edges, info = ragged([4, 9, 0, 1, 30], 3)
    out = importance_sampling(*to(device, (edges, edges)), 6, packed_info=info.to(device))
    assert out.samples.shape == (5, 6)
    for ray, (begin, count) in enumerate(info.tolist()):
        own = edges[begin : begin + count][None]
        torch.testing.assert_close(out.edges[ray].cpu(), importance_sampling(own, own, 6).edges[0], **EXACT)
    assert out.edges[2].tolist() == [0] * 7  # without edges
    assert (out.edges[3] == edges[info[3, 0]].item()).all()  # a single edge


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "cdf",
    [[0.0] * 4, [0.7] * 4, [0.0, NAN, 0.5, 1], [NAN] * 4, [0.0, 0.2, INF, 1], [0.5, 0.5, 0.5, 0.25], [-INF, 0, 0.5, 1]],
)
def test_a_cdf_that_says_nothing_is_uniform(device: str, cdf: list[float]) -> None:
    edges = torch.tensor([[1.0, 1.5, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0]], device=device)
    cdfs = torch.tensor([cdf, [0.0, 0.5, 0.5, 1.0]], device=device)
    out = importance_sampling(edges, cdfs, 4)
    assert out.edges.tolist() == [[1, 2, 3, 4, 5], [0, 0.5, 1.5, 2.5, 3]]
    assert out.samples.tolist() == [[1.5, 2.5, 3.5, 4.5], [0.25, 0.75, 2.25, 2.75]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_cdf_of_any_range_and_size(device: str) -> None:
    """Neither from 0 nor to 1, and with less weight than 1e-10 in all: the proportions count."""
    edges = torch.tensor([[0.0, 1.0, 2.0, 4.0]], device=device)
    cdf = torch.tensor([[0.0, 0.25, 0.75, 1.0]], device=device)
    expected = importance_sampling(edges, cdf, 8)
    for low, size in [(0.0, 2.0**-40), (0.0, 2.0**100), (0.5, 0.25), (-1.0, 2.0)]:
        out = importance_sampling(edges, low + size * cdf, 8)
        torch.testing.assert_close(out.edges, expected.edges, **EXACT)  # powers of two: exact


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_results_are_ascending_within_the_ray(device: str, stratified: bool, n: int) -> None:
    edges, cdfs = sorted_rows(200, 20, 1), (20 * sorted_rows(200, 20, 2)).round() / 20
    jitter = rand(200, seed=3) if stratified else None
    out = importance_sampling(*to(device, (edges, cdfs)), n, jitter=None if jitter is None else jitter.to(device))
    assert (out.edges.diff(dim=1) >= 0).all()
    assert (out.samples.diff(dim=1) >= 0).all()
    assert ((out.samples >= out.edges[:, :-1]) & (out.samples <= out.edges[:, 1:])).all()
    assert (out.edges.cpu() >= edges[:, :1]).all()
    assert (out.edges.cpu() <= edges[:, -1:]).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(device: str, dtype: torch.dtype) -> None:
    edges, cdfs = (v.to(device, dtype) for v in smooth(3, 9, 1))
    out = importance_sampling(edges, cdfs, 5)
    assert out.edges.dtype == out.samples.dtype == dtype
    wide = importance_sampling(edges.float(), cdfs.float(), 5)
    # One ulp of the narrower type, of values in [2, 4); what float32 rounds is bounded as above.
    atol = 2 * torch.finfo(dtype).eps + 2**-24 * (4 * 9 / 0.3 + 16)
    torch.testing.assert_close(out.edges.double(), wide.edges.double(), rtol=0, atol=atol)
    left, right = searchsorted(edges, edges[:, 2:4])
    assert left.tolist() == [[2, 3]] * 3
    assert right.tolist() == [[3, 4]] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_differentiated(device: str) -> None:
    edges, cdfs = (v.to(device).requires_grad_() for v in smooth(3, 9, 1))
    out = importance_sampling(edges, cdfs, 5)
    assert not out.samples.requires_grad
    assert not out.edges.requires_grad


def test_views_are_accepted() -> None:
    edges, cdfs = smooth(5, 9, 1)
    expected, found = importance_sampling(edges, cdfs, 5), searchsorted(edges, edges)
    spread, spread_cdfs = (torch.stack([v, v], -1)[..., 0] for v in (edges, cdfs))
    for a, b in zip(expected[:2], importance_sampling(spread, spread_cdfs, 5)[:2], strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert torch.equal(searchsorted(spread, spread)[0], found[0])


@pytest.mark.gpu
def test_nothing_synchronizes() -> None:
    edges, cdfs = (v.cuda() for v in smooth(5, 9, 1))
    info = torch.tensor([[9 * i, 9] for i in range(5)], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        importance_sampling(edges, cdfs, 4)
        importance_sampling(edges.flatten(), cdfs.flatten(), 4, packed_info=info)
        searchsorted(edges, edges)
        searchsorted(edges.flatten(), edges, packed_info=info)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_comparison_detects_samples_at_the_strata_s_edges() -> None:
    edges, cdfs = smooth(4, 9, 1)
    args = (edges.flatten(), cdfs.flatten(), None, 4, None, None, 20, 24, None)

    def mutated(*args: Any) -> Any:
        return importance_reference(*args[:8], torch.zeros(4))

    def check(truth: Callable[..., Any]) -> None:
        check_op("importance_sampling", truth, args, device="cpu", **EXACT, opcheck=False)

    check(importance_reference)
    assert_detected(lambda: check(mutated))


def test_bad_arguments_are_named() -> None:
    edges, cdfs = smooth(3, 9, 1)
    info = torch.tensor([[0, 9], [9, 18]])
    with pytest.raises(
        ValueError, match=r"edges: expected floats of shape \[..., n\], or \[N\] with packed_info, got .* of \[27\]"
    ):
        importance_sampling(edges.flatten(), cdfs.flatten(), 4)
    with pytest.raises(ValueError, match=r"edges: expected shape \[N\], got \[3, 9\]"):
        importance_sampling(edges, cdfs, 4, packed_info=info)
    with pytest.raises(ValueError, match=r"cdfs: expected shape \[3, 9\], got \[3, 8\]"):
        importance_sampling(edges, cdfs[:, 1:], 4)
    with pytest.raises(ValueError, match="n_samples: expected >= 0, got -1"):
        importance_sampling(edges, cdfs, -1)
    with pytest.raises(ValueError, match="n_samples: expected numbers >= 0"):
        importance_sampling(edges, cdfs, torch.tensor([1, -1, 2]))
    with pytest.raises(ValueError, match=r"n_samples: expected shape \[3\], got \[2\]"):
        importance_sampling(edges, cdfs, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"jitter: expected shape \[3\], got \[9\]"):
        importance_sampling(edges, cdfs, 4, jitter=torch.zeros(9))
    with pytest.raises(ValueError, match="packed_info: expected begins and counts of segments within 26 entries"):
        importance_sampling(edges.flatten()[1:], cdfs.flatten()[1:], 4, packed_info=info)
    with pytest.raises(ValueError, match=r"queries: expected floats of shape \[..., Q\] for 3 rays, got .* of \[2, 9\]"):
        searchsorted(edges, edges[:2])
    with pytest.raises(ValueError, match=r"query_rays: expected shape \[27\], got \[3\]"):
        searchsorted(edges, edges.flatten(), query_rays=torch.arange(3))
    with pytest.raises(ValueError, match=r"query_rays: expected dtype torch.int64"):
        searchsorted(edges, edges[:, 0], query_rays=torch.arange(3, dtype=torch.int32))
