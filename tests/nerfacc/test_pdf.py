from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc import RayIntervals, RaySamples, importance_sampling, searchsorted
from lightning_nerf.nerfacc.pdf import _sample_from_weighted
from tests.ops.harness import DEVICES, rand

EXACT = {"rtol": 0.0, "atol": 0.0}


def rows(n_rays: int, width: int, device: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ascending edges, and a CDF that rises between any two of them by 0.3 / width at least."""
    edges = rand(n_rays, width, seed=seed).sort(-1).values
    rises = torch.cat([torch.zeros(n_rays, 1), rand(n_rays, width - 1, seed=seed + 1, low=0.4)], 1).cumsum(1)
    return edges.to(device), (rises / rises[:, -1:]).to(device)


def as_list(edges: Tensor) -> RayIntervals:
    n_rays, width = edges.shape
    info = torch.arange(n_rays, device=edges.device)[:, None] * width * torch.tensor([1, 0], device=edges.device)
    return RayIntervals(edges.flatten(), info + torch.tensor([0, width], device=edges.device))


@pytest.mark.parametrize("device", DEVICES)
def test_searchsorted_in_all_forms(device: str) -> None:
    keys, queries = rand(4, 9, seed=1).sort(-1).values, rand(4, 6, seed=2, low=-0.2, high=1.2)
    right = torch.searchsorted(keys, queries.maximum(keys[:, :1]), right=True).clamp(max=8)
    left = right - 1
    keys, queries, left, right = (v.to(device) for v in (keys, queries, left, right))
    shift = torch.arange(4, device=device)[:, None] * 9
    indices = torch.arange(4, device=device).repeat_interleave(9)
    query_list = as_list(queries)
    for sequence in (
        RaySamples(keys),
        as_list(keys),
        RaySamples(keys.flatten(), ray_indices=indices),
        RaySamples(as_list(keys).vals, as_list(keys).packed_info),
    ):
        found = searchsorted(sequence, RayIntervals(queries))
        assert torch.equal(found[0], left)
        assert torch.equal(found[1], right)
        assert found[0].dtype == torch.int64
        for values in (
            query_list,
            RaySamples(query_list.vals, query_list.packed_info),
            RayIntervals(query_list.vals, ray_indices=torch.arange(4, device=device).repeat_interleave(6)),
        ):
            found = searchsorted(sequence, values)
            assert torch.equal(found[0], (left + shift).flatten())
            assert torch.equal(found[1], (right + shift).flatten())


@pytest.mark.parametrize("device", DEVICES)
def test_searchsorted_of_nothing_and_of_no_ray(device: str) -> None:
    keys = torch.tensor([0.0, 1, 2], device=device)
    sequence = RaySamples(keys, torch.tensor([[0, 2], [2, 0], [2, 1]], device=device))
    none = searchsorted(sequence, RaySamples(keys[:0], torch.zeros(3, 2, dtype=torch.int64, device=device)))
    assert [i.tolist() for i in none] == [[], []]
    # Values 1 and 4 are in no ray's chunk; those of ray 2 come first.
    values = RaySamples(
        torch.tensor([5.0, 5, 0.5, 2, 5], device=device), torch.tensor([[2, 2], [0, 0], [0, 1]], device=device)
    )
    left, right = searchsorted(sequence, values)
    assert left.tolist() == [2, -1, 0, 0, -1]
    assert right.tolist() == [2, -1, 1, 1, -1]
    rays = torch.zeros(0, 5, device=device)
    assert searchsorted(RaySamples(rays), RaySamples(rays))[0].shape == (0, 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [2, 3, 50])
def test_samples_agree_with_plain_torch_functions(device: str, n: int) -> None:
    edges, cdfs = rows(7, 30, device)
    intervals, samples = importance_sampling(RayIntervals(edges), cdfs, n)
    low, high = edges[:, :1], edges[:, -1:]
    new_edges, centers = _sample_from_weighted(edges, cdfs.diff(dim=1), n, False, low, high)
    # u differs by 2^-22 and by the roundings of a sum of 30; t moves by 1 while it moves by 0.3 / 30 at the least.
    atol = (2 + 30) * 2**-23 * 30 / 0.3
    torch.testing.assert_close(samples.vals, centers, rtol=0, atol=atol)
    torch.testing.assert_close(intervals.vals, new_edges, rtol=0, atol=2 * atol)


@pytest.mark.parametrize("device", DEVICES)
def test_plain_stratified_samples_keep_to_their_strata(device: str) -> None:
    bins = torch.linspace(0, 1, 5, device=device).expand(200, 5)
    torch.manual_seed(3)
    edges, centers = _sample_from_weighted(bins, torch.ones(200, 4, device=device), 10, True, 0.0, 1.0)
    assert edges.shape == (200, 11)
    offsets = centers * 10 - torch.arange(10, device=device)  # weights are uniform: t is u
    assert ((offsets > -1e-5) & (offsets < 1.2)).all()
    assert (offsets.std(1) < 0.1).all()
    assert offsets[:, 0].std() > 0.2
    assert ((edges >= 0) & (edges <= 1)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_stratified_samples_follow_torch_s_seed_and_share_an_offset(device: str) -> None:
    edges = torch.tensor([0.0, 1.0], device=device).expand(500, 2)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(importance_sampling(RayIntervals(edges), edges, 8, stratified=True)[1].vals)
    torch.testing.assert_close(draws[0], draws[1], **EXACT)
    assert not torch.equal(draws[0], draws[2])
    offsets = draws[0] * 8 - torch.arange(8, device=device)
    assert ((offsets >= 0) & (offsets <= 1)).all()
    assert (offsets - offsets[:, :1]).abs().max() < 8 * 2**-23
    # A uniform offset: its mean over 500 rays is within six standard deviations of 1/2.
    assert (offsets[:, 0].mean() - 0.5).abs() < 6 * 12**-0.5 * 500**-0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stratified", [False, True])
def test_lists_and_numbers_of_each_ray(device: str, stratified: bool) -> None:
    edges, cdfs = rows(4, 12, device)
    torch.manual_seed(5)
    expected = importance_sampling(RayIntervals(edges), cdfs, 6, stratified)
    torch.manual_seed(5)
    from_list = importance_sampling(as_list(edges), cdfs.flatten(), 6, stratified)
    for a, b in zip(expected, from_list, strict=True):
        torch.testing.assert_close(a.vals, b.vals, **EXACT)
        assert b.packed_info is None
        assert b.ray_indices is None
    numbers = torch.tensor([6, 0, 1, 6], device=device)
    for intervals in (RayIntervals(edges), as_list(edges)):
        torch.manual_seed(5)
        new, samples = importance_sampling(intervals, cdfs.view(intervals.vals.shape), numbers, stratified)
        assert samples.packed_info is not None
        assert new.packed_info is not None
        assert samples.packed_info.tolist() == [[0, 6], [6, 0], [6, 1], [7, 6]]
        assert new.packed_info.tolist() == [[0, 7], [7, 0], [7, 2], [9, 7]]
        assert samples.ray_indices.tolist() == [0] * 6 + [2] + [3] * 6
        assert new.ray_indices.tolist() == [0] * 7 + [2] * 2 + [3] * 7
        assert new.is_left.tolist() == [*[True] * 6, False, True, False, *[True] * 6, False]
        assert new.is_right.tolist() == [False, *[True] * 6, False, True, False, *[True] * 6]
        for ray in (0, 3):
            torch.testing.assert_close(new.vals[new.ray_indices == ray], expected[0].vals[ray], **EXACT)
            torch.testing.assert_close(samples.vals[samples.ray_indices == ray], expected[1].vals[ray], **EXACT)
        assert new.vals[7:9].tolist() == [edges[2, 0].item(), edges[2, -1].item()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_rays", [0, 3])
def test_nothing(device: str, n_rays: int) -> None:
    edges, cdfs = rows(n_rays, 4, device)
    for n in (0, 1, 3):
        new, samples = importance_sampling(RayIntervals(edges), cdfs, n)
        assert new.vals.shape == (n_rays, n + 1)
        assert samples.vals.shape == (n_rays, n)
    new, samples = importance_sampling(RayIntervals(edges), cdfs, torch.zeros(n_rays, dtype=torch.int64, device=device))
    assert len(new.vals) == len(samples.vals) == len(new.is_left) == len(new.is_right) == 0
    assert samples.packed_info.tolist() == [[0, 0]] * n_rays
    several, _ = importance_sampling(RayIntervals(edges.view(n_rays, 1, 4)), cdfs.view(n_rays, 1, 4), 2)
    assert several.vals.shape == (n_rays, 1, 3)


def test_specs() -> None:
    values = torch.zeros(3)
    assert RayIntervals(values).device == RaySamples(values).device == values.device
    assert RayIntervals(values) != RaySamples(values)
    assert list(RaySamples.__dataclass_fields__) == ["vals", "packed_info", "ray_indices", "is_valid"]
    assert list(RayIntervals.__dataclass_fields__) == ["vals", "packed_info", "ray_indices", "is_left", "is_right"]


def test_errors() -> None:
    edges, cdfs = rows(4, 12, "cpu")
    with pytest.raises(ValueError, match="vals: expected packed_info or ray_indices with values in one list"):
        importance_sampling(RayIntervals(edges[0]), cdfs[0], 3)
    with pytest.raises(ValueError, match="values: expected packed_info or ray_indices"):
        searchsorted(RayIntervals(edges), RaySamples(edges[0]))
    with pytest.raises(ValueError, match=r"cdfs: expected shape \[4, 12\] as intervals.vals, got \[4, 11\]"):
        importance_sampling(RayIntervals(edges), cdfs[:, 1:], 3)
    with pytest.raises(TypeError):
        importance_sampling(RayIntervals(edges), cdfs, 2.5)  # pyright: ignore[reportArgumentType]
