"""Which rays get samples, where these lie, their CDFs: kernels against references, and both against what they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.ops import rounds
from lightning_nerf.ops.random import make_key
from lightning_nerf.ops.rounds import Chosen, round_cdfs, round_counting, round_rays, round_samples
from tests.ops.harness import DEVICES, assert_detected, check_op, rand

INF, NAN = float("inf"), float("nan")
ULP = 2**-23
ENDS = {  # of each ray's interval
    "no ray": ([], []),
    "one": ([0.5], [2.0]),
    "none hits": ([INF, 3.0, 2.0], [INF, 3.0, 1.0]),
    "all kinds": (
        [1.0, INF, 0.0, -1.0, -INF, 2.0, NAN, 1.0, 5.0, -3e38, 1e-30, 0.1],
        [2.0, INF, 1.0, 1.0, 1.0, INF, 1.0, NAN, 4.0, 3e38, 1e30, 1e6],
    ),
    "many": ([0.1] * 3000, [1.0, 0.1, 2.0] * 1000),
}
FLOAT = {"rtol": ULP, "atol": 0.0}


def ends(name: str) -> tuple[Tensor, Tensor]:
    near, far = ENDS[name]
    return torch.tensor(near), torch.tensor(far)


def chosen_for(k: int, *, spare: int = 2, n_rays: int = 40) -> Chosen:
    """K - spare rays in use, of intervals from 0.1 to one of 1 to 1e6."""
    hit = torch.zeros(n_rays, dtype=torch.bool)
    hit[torch.randperm(n_rays, generator=torch.Generator().manual_seed(1))[: k - spare]] = True
    far = torch.where(hit, 10 ** rand(n_rays, seed=2, high=6.0), 0.0)
    chosen = round_rays(torch.full((n_rays,), 0.1), far)
    return chosen._replace(**{name: getattr(chosen, name)[:k] for name in ("rays", "near", "far", "used")})


def shares(k: int, n: int) -> Tensor:
    edges = rand(k, n + 1, seed=3).sort(1).values
    edges[:, 0], edges[:, -1] = 0.0, 1.0
    return edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("capacity", "count"), [(2**31 - 1, 2**31 - 1), (2, 2), (0, 0)])
@pytest.mark.parametrize("nearest", [0.0, 2.0**-10])
@pytest.mark.parametrize("name", ENDS)
def test_chosen_rays_are_the_references(name: str, nearest: float, capacity: int, count: int, device: str) -> None:
    near, far = ends(name)
    args = near, far, capacity, min(count, len(near)), nearest
    opcheck = name == "all kinds" and capacity == 2
    check_op("round_rays", rounds.rays_reference, args, device=device, rtol=0.0, atol=0.0, opcheck=opcheck)


@pytest.mark.parametrize("device", DEVICES)
def test_rays_with_a_finite_interval_are_chosen_in_their_order(device: str) -> None:
    near, far = (each.to(device) for each in ends("all kinds"))
    chosen = round_rays(near, far)
    assert chosen.rays[chosen.used].tolist() == [0, 2, 3, 9, 10, 11]
    assert chosen.used.tolist() == [True] * 6 + [False] * 6
    assert torch.equal(chosen.near[:6], near[chosen.rays[:6]])
    assert not any(each[6:].any() for each in (chosen.near, chosen.far, chosen.rays))
    few = round_rays(near, far, 3, nearest=0.25)
    assert few.rays.tolist() == [0, 2, 3]
    assert few.near.tolist() == [1, 0.25, 0.25]
    assert few.kept.tolist() == [True] * 9 + [False] * 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", rounds.SPACINGS)
@pytest.mark.parametrize(("k", "n", "tail"), [(0, 3, 0), (5, 1, 0), (6, 48, 7), (30, 300, 5000), (4, 0, 2)])
def test_samples_are_the_references(k: int, n: int, tail: int, spacing: str, device: str) -> None:
    chosen = chosen_for(k, spare=min(k, 2))
    args = shares(k, n), *chosen[:5], rounds.SPACINGS.index(spacing), k * n + tail
    # Uniform: the reference's lerp may fuse its multiply-add, half an ulp of each of two terms up to far.
    limits = {"rtol": ULP, "atol": ULP * float(chosen.far.amax()) if k and spacing == "uniform" else 0.0}
    check_op("round_samples", rounds.samples_reference, args, device=device, opcheck=k == 6, **limits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", ["uniform", "disparity"])
def test_samples_touch_and_rise_from_near_to_far(spacing: str, device: str) -> None:
    k, n = 10, 200
    chosen = Chosen(*(each.to(device) for each in chosen_for(k)))
    starts, finishes, indices, offsets = round_samples(chosen, shares(k, n).to(device), spacing, k * n + 5)
    assert not any(each[(k - 2) * n :].any() for each in (starts, finishes, indices))
    starts, finishes, indices = (each[: (k - 2) * n].view(k - 2, n) for each in (starts, finishes, indices))
    assert torch.equal(starts[:, 1:], finishes[:, :-1])
    assert (starts <= finishes).all()
    assert torch.equal(starts[:, 0], chosen.near[: k - 2])
    torch.testing.assert_close(finishes[:, -1], chosen.far[: k - 2], **FLOAT)
    assert torch.equal(indices.long(), chosen.rays[: k - 2, None].expand(-1, n))
    assert torch.equal(offsets, chosen.offsets * n)


def weights(k: int, n: int) -> Tensor:
    """Of sum < 1; some are 0."""
    return (rand(k, n, seed=5) - 0.2).clamp(min=0) / n


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [None, 0, 1, 500, 10**6])
@pytest.mark.parametrize("padding", [0.0, 0.01])
@pytest.mark.parametrize(("k", "n"), [(0, 4), (3, 1), (5, 32), (7, 257), (2, 0)])
def test_cdfs_are_the_references(k: int, n: int, padding: float, step: int | None, device: str) -> None:
    key = None if step is None else make_key(0, step=step)
    args = weights(k, n), key, padding, 1000, 10.0
    limits = {"rtol": 4 * ULP, "atol": 0.0}  # two implementations of the power, 2 ulp each at most
    opcheck = n == 32 and step == 500
    check_op("round_cdfs", rounds.cdfs_reference, args, device=device, opcheck=opcheck, **limits)


@pytest.mark.parametrize("device", DEVICES)
def test_cdfs_end_at_the_sum_and_do_not_fall(device: str) -> None:
    found = weights(20, 300).to(device)
    cdfs = round_cdfs(found, padding=0.01)
    assert (cdfs.diff(dim=1) > 0).all()
    torch.testing.assert_close(cdfs[:, -1], (found.double() + 0.01).sum(1).float(), **FLOAT)
    even = round_cdfs(found, make_key(0, device=device), padding=0.01, anneal_steps=10, anneal_slope=10.0)
    assert torch.equal(even, torch.arange(301.0, device=device).expand(20, 301))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n_rays", "rows", "spare"), [(0, 0, 0), (1, 1, 0), (50, 20, 3), (9, 0, 4), (0, 0, 2)])
def test_counting_rows_are_the_references(n_rays: int, rows: int, spare: int, device: str) -> None:
    n = 3
    rays = torch.randperm(n_rays, generator=torch.Generator().manual_seed(2))[:rows].sort().values
    entries = torch.zeros(n_rays + 1, dtype=torch.int32)
    entries[rays + 1] = n
    indices = torch.cat([rays.int().repeat_interleave(n), torch.zeros(spare * n + 1, dtype=torch.int32)])
    counts = rand(n_rays, seed=4) < 0.6
    args = counts, indices, entries.cumsum(0).int(), rows + spare, n
    check_op("round_counting", rounds.counting_reference, args, device=device, rtol=0.0, atol=0.0, opcheck=n_rays == 50)
    expected = [*counts[rays].tolist(), *[False] * spare]
    assert round_counting(*(each.to(device) for each in args[:3]), rows + spare, n).tolist() == expected


def test_other_arguments_are_refused() -> None:
    near, far = ends("one")
    chosen, edges, counts = chosen_for(5), shares(5, 4), torch.ones(1, dtype=torch.bool)
    indices, offsets = torch.zeros(4, dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32)
    cases: list[tuple[Any, str]] = [
        (lambda: round_rays(near, far[:0]), "far: expected shape"),
        (lambda: round_rays(near.double(), far), "near: expected dtype"),
        (lambda: round_rays(near, far, -1), "capacity: expected"),
        (lambda: round_rays(near, far, nearest=-1.0), "nearest: expected"),
        (lambda: round_samples(chosen, edges[1:]), "edges: expected shape"),
        (lambda: round_samples(chosen, edges, "cubic"), "spacing: expected one of places, uniform, disparity, got 'cubic'"),
        (lambda: round_samples(chosen, edges, capacity=19), "capacity: expected at least 5 rays of 4 samples, got 19"),
        (lambda: round_cdfs(edges[0]), "weights: expected shape"),
        (lambda: round_cdfs(edges, offsets), "key: expected dtype"),
        (lambda: round_cdfs(edges, padding=-1.0), "padding: expected"),
        (lambda: round_counting(counts, indices, offsets, 2, 3), "k: expected"),
        (lambda: round_counting(counts, indices, offsets[1:], 1, 4), "offsets: expected shape"),
    ]
    for call, message in cases:
        with pytest.raises(BadArgument, match=message):
            call()


def test_a_wrong_reference_is_noticed() -> None:
    def unlike(edges: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return rounds.samples_reference(edges * (1 - 1e-6), *others)

    args = shares(6, 48), *chosen_for(6)[:5], rounds.SPACINGS.index("disparity"), 6 * 48
    assert_detected(lambda: check_op("round_samples", unlike, args, device="cpu", opcheck=False, **FLOAT))
