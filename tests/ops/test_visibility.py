from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.pack import pack
from lightning_nerf.ops.visibility import (
    ALL,
    count_reference,
    pack_visible_reference,
    prune,
    prune_from,
    write_reference,
)
from lightning_nerf.types import PackedSamples
from tests.ops.harness import DEVICES, assert_detected, check_op, poison_tail, ragged_offsets, rand, tensors, to

RAGGED = [5, 0, 1, 16, 17, 0, 33, 2, 100]
CASES: dict[str, list[int]] = {
    "no rays": [],
    "one ray": [7],
    "no samples": [0, 0, 0],
    "ragged": RAGGED,
    "long ray": [3, 3000, 1],
    "many rays": [(i * 37) % 41 for i in range(300)],
}


def packed(counts: list[int], *, step: float = 0.1) -> PackedSamples:
    offsets = ragged_offsets(counts)
    n = int(offsets[-1])
    ray = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), torch.tensor(counts, dtype=torch.int64))
    t_starts = (torch.arange(n) - offsets[:-1].long()[ray.long()]) * step
    lengths = rand(n, seed=3, low=0.5 * step, high=step)
    return PackedSamples(t_starts, t_starts + lengths, ray, offsets, torch.ones(len(counts), dtype=torch.bool))


def densities_for(samples: PackedSamples, seed: int = 0) -> Tensor:
    """Mostly thin, some thick: rays end at all depths."""
    n = len(samples.t_starts)
    return 20 * rand(n, seed=seed) ** 4


def arguments(counts: list[int], eps: float = 1e-4, alpha: float = 0.0, window: tuple[int, int] = ALL) -> tuple[Any, ...]:
    samples = packed(counts)
    return (densities_for(samples), samples.t_starts, samples.t_ends, samples.offsets, eps, torch.tensor(alpha), *window)


def brute_force(densities: Tensor, samples: PackedSamples, eps: float, alpha_thre: float) -> list[int]:
    """Indices of the surviving samples, by the definition, in Python floats."""
    survivors = []
    for begin, end in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        transmittance = 1.0
        for i in range(begin, end):
            sigma = float(densities[i])
            depth = (sigma if sigma > 0 else 0.0) * float(samples.t_ends[i] - samples.t_starts[i])
            if transmittance >= eps and 1 - math.exp(-depth) >= alpha_thre:
                survivors.append(i)
            transmittance *= math.exp(-depth)
    return survivors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernels_match_the_reference(device: str, name: str) -> None:
    settings = [(1e-4, 0.0, ALL), (1e-2, 0.02, ALL), (0.0, 0.01, ALL), (0.5, 0.3, ALL)]
    settings += [(1e-4, 0.0, (3, 9)), (1e-2, 0.02, (16, 2**31 - 1)), (0.5, 0.3, (0, 4)), (0.5, 0.0, (5, 5))]
    for eps, alpha, window in settings:
        args = arguments(CASES[name], eps, alpha, window)
        opcheck = name == "ragged" and alpha == 0.02
        check_op("visibility_count", count_reference, args, device=device, rtol=0, atol=0, opcheck=opcheck)
        counts = count_reference(*args)
        for capacity in {int(counts.sum()), int(counts.sum()) // 2, int(counts.sum()) + 9}:
            offsets, _ = pack(counts, capacity)
            write = (*args, offsets, capacity)
            check_op("visibility_write", write_reference, write, device=device, rtol=0, atol=0, opcheck=opcheck)
            kept = rand(len(CASES[name]), seed=1) < 0.8
            both = (*args[:4], kept, *args[4:], capacity)
            check_op("visibility_pack", pack_visible_reference, both, device=device, rtol=0, atol=0, opcheck=opcheck)


@pytest.mark.parametrize("device", DEVICES)
def test_survivors_are_those_of_the_definition(device: str) -> None:
    samples = packed(RAGGED)
    densities = densities_for(samples)
    for eps, alpha in [(1e-4, 0.0), (1e-2, 0.02), (0.3, 0.5)]:
        expected = brute_force(densities, samples, eps, alpha)
        assert 0 < len(expected) < len(densities)
        moved = PackedSamples(*to(device, samples))
        kept = prune(densities.to(device), moved, early_stop_eps=eps, alpha_thre=alpha)
        assert torch.equal(kept.t_starts.cpu(), samples.t_starts[expected])
        assert torch.equal(kept.t_ends.cpu(), samples.t_ends[expected])
        assert torch.equal(kept.ray_indices.cpu(), samples.ray_indices[expected])
        assert torch.equal(
            kept.offsets.cpu().diff(), torch.bincount(samples.ray_indices[expected], minlength=len(RAGGED)).int()
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [None, 120])
@pytest.mark.parametrize("alpha", [0.0, 0.02])
def test_sources_say_where_survivors_come_from(device: str, capacity: int | None, alpha: float) -> None:
    samples = PackedSamples(*to(device, packed(RAGGED)))
    densities = densities_for(samples).to(device)
    survivors, sources = prune_from(densities, samples, early_stop_eps=0.1, alpha_thre=alpha, capacity=capacity)
    n = int(survivors.offsets[-1])
    assert 0 < n < len(densities)
    assert sources.dtype == torch.int32
    assert sources.shape == survivors.t_starts.shape
    for name in ("t_starts", "t_ends", "ray_indices"):
        assert torch.equal(getattr(samples, name)[sources[:n].long()], getattr(survivors, name)[:n])
    assert not sources[n:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [None, 2000])
@pytest.mark.parametrize("alpha", [0.0, 0.02])
def test_densities_behind_the_last_visible_sample_do_not_matter(device: str, capacity: int | None, alpha: float) -> None:
    """A field may leave out what is hidden: 0, or any number, may stand there."""
    eps = 1e-2
    counts = [(i * 37) % 83 for i in range(100)]
    samples = packed(counts)
    densities = densities_for(samples)
    depth = densities.double() * (samples.t_ends - samples.t_starts).double()
    hidden = torch.zeros_like(densities, dtype=torch.bool)
    for begin, end in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        hidden[begin:end] = depth[begin:end].cumsum(0) - depth[begin:end] > -math.log(eps) + 1e-9
    assert 0.1 < hidden.float().mean() < 0.9
    samples, hidden = PackedSamples(*to(device, samples)), hidden.to(device)
    options: dict[str, Any] = {"early_stop_eps": eps, "alpha_thre": alpha, "capacity": capacity}
    expected = prune_from(densities.to(device), samples, **options)
    for poison in (0.0, 1e30, math.inf, rand(len(densities), seed=9).to(device)):
        survivors, sources = prune_from(torch.where(hidden, poison, densities.to(device)), samples, **options)
        assert torch.equal(sources, expected[1])
        for a, b in zip(tensors(survivors), tensors(expected[0]), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [None, 200])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_a_window_is_a_part_of_what_survives(device: str, capacity: int | None, alpha: float) -> None:
    samples = PackedSamples(*to(device, packed(RAGGED)))
    densities = densities_for(samples).to(device)
    options = {"early_stop_eps": 1e-2, "alpha_thre": alpha, "capacity": capacity}
    _, everything = prune_from(densities, samples, **options)
    place = torch.arange(len(densities), device=device) - samples.offsets[samples.ray_indices.long()]
    parts = []
    for first, last in [(0, 3), (3, 10), (10, 2**31 - 1)]:
        part, sources = prune_from(densities, samples, window=(first, last), **options)
        sources = sources[: int(part.offsets[-1])].long()
        assert ((place[sources] >= first) & (place[sources] < last)).all()
        assert torch.equal(part.t_starts[: len(sources)], samples.t_starts[sources])
        parts.append(sources)
    together = torch.cat(parts).sort().values
    assert torch.equal(together, everything[: len(together)].long())


@pytest.mark.parametrize("device", DEVICES)
def test_a_dropped_sample_still_casts_its_shadow(device: str) -> None:
    """Transmittance counts all samples: a thousand, each too thin for alpha_thre, hide the last."""
    samples = PackedSamples(*to(device, packed([1001], step=1.0)))
    samples = samples._replace(t_ends=samples.t_starts + 1)
    densities = torch.full((1001,), 0.0199, device=device)
    densities[-1] = 5.0
    assert len(prune(densities, samples, alpha_thre=0.02, early_stop_eps=1e-4).t_starts) == 0
    assert prune(densities, samples, alpha_thre=0.02, early_stop_eps=1e-9).t_starts.tolist() == [1000.0]


@pytest.mark.parametrize("device", DEVICES)
def test_extreme_densities(device: str) -> None:
    samples = PackedSamples(*to(device, packed([4, 4, 4, 2])))
    inf, nan = math.inf, math.nan
    densities = torch.tensor([nan, -5.0, inf, 1.0, inf, inf, 0.0, 1.0, 0.0, nan, 0.0, 0.0, 3e38, 0.0], device=device)
    survivors = prune(densities, samples, alpha_thre=1e-3)
    expected = [2, 4, 12]
    assert torch.equal(survivors.t_starts, samples.t_starts[expected])
    assert survivors.offsets.tolist() == [0, 1, 2, 2, 3]
    visible = prune(densities, samples)  # NaN and negative as empty; nothing behind the first opaque one
    assert visible.offsets.diff().tolist() == [3, 1, 4, 1]
    zero_length = prune(densities, samples._replace(t_ends=samples.t_starts))
    assert zero_length.offsets.tolist() == samples.offsets.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_all_and_none_visible(device: str) -> None:
    samples = PackedSamples(*to(device, packed(RAGGED)))
    densities = torch.zeros_like(samples.t_starts)
    for a, b in zip(tensors(prune(densities, samples)), tensors(samples), strict=True):
        assert torch.equal(a, b)
    none = prune(densities, samples, alpha_thre=0.1)
    assert none.t_starts.shape == (0,)
    assert none.offsets.tolist() == [0] * (len(RAGGED) + 1)
    assert bool(none.kept.all())


@pytest.mark.parametrize("device", DEVICES)
def test_the_tail_changes_nothing(device: str) -> None:
    samples, n = packed(RAGGED), sum(RAGGED)
    densities = densities_for(samples)
    poisoned = PackedSamples(
        poison_tail(samples.t_starts, n, extra=50),
        poison_tail(samples.t_ends, n, extra=50),
        torch.cat([samples.ray_indices, torch.zeros(50, dtype=torch.int32)]),
        samples.offsets,
        samples.kept,
    )
    a = prune(densities.to(device), PackedSamples(*to(device, samples)), capacity=200)
    b = prune(poison_tail(densities, n, extra=50).to(device), PackedSamples(*to(device, poisoned)), capacity=200)
    for x, y in zip(tensors(a), tensors(b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("device", DEVICES)
def test_capacity_drops_whole_rays(device: str) -> None:
    samples = PackedSamples(*to(device, packed(RAGGED)))
    samples = samples._replace(kept=torch.tensor([True] * 4 + [False] + [True] * 4, device=device))
    densities = densities_for(samples).to(device)
    exact = prune(densities, samples)
    counts = exact.offsets.diff().tolist()
    capacity = sum(counts[:5]) + counts[5] + counts[6] - 1
    small = prune(densities, samples, capacity=capacity)
    assert small.kept.tolist() == [True] * 4 + [False, True, False, False, False]
    large = prune(densities, samples, capacity=2 * len(densities))
    assert torch.equal(large.kept, samples.kept)
    for n, result in ((capacity, small), (2 * len(densities), large)):
        used = int(result.offsets[-1])
        assert result.t_starts.shape == result.t_ends.shape == result.ray_indices.shape == (n,)
        for name in ("t_starts", "t_ends", "ray_indices"):
            assert torch.equal(getattr(result, name)[:used], getattr(exact, name)[:used])
            assert not getattr(result, name)[used:].any()


def test_the_same_bits_with_any_number_of_threads() -> None:
    samples = packed([(i * 37) % 41 for i in range(1000)])
    densities = densities_for(samples)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(prune(densities, samples, alpha_thre=0.01))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*map(tensors, results), strict=True):
        assert torch.equal(a, b)


def test_threshold_may_be_a_tensor_and_no_gradient_comes_back() -> None:
    samples = packed(RAGGED)
    densities = densities_for(samples).requires_grad_()
    expected = tensors(prune(densities, samples, alpha_thre=0.02))
    for threshold in (torch.tensor(0.02), torch.tensor([0.02]), torch.tensor([[0.02]], dtype=torch.float64)):
        for x, y in zip(expected, tensors(prune(densities, samples, alpha_thre=threshold)), strict=True):
            assert torch.equal(x, y)
            assert not y.requires_grad


def test_the_comparison_detects_inclusive_transmittance() -> None:
    args = arguments(RAGGED, 1e-2, 0.0)

    def mutated(
        densities: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor, eps: float, alpha: Tensor, *window: int
    ) -> Tensor:
        depth = (densities * (t_ends - t_starts)).double()
        sums = torch.cat([depth.new_zeros(1), depth.cumsum(0)])
        ray = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        visible = (-(sums[1:] - sums[offsets[:-1].long()][ray])).exp() >= eps
        return torch.bincount(ray[visible], minlength=len(offsets) - 1).int()

    assert_detected(lambda: check_op("visibility_count", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_are_named() -> None:
    samples = packed([3, 4])
    densities = torch.zeros(7)
    with pytest.raises(ValueError, match=r"densities: expected shape \[7\], got \[6\]"):
        prune(densities[1:], samples)
    with pytest.raises(ValueError, match=r"densities: expected dtype torch.float32, got torch.float64"):
        prune(densities.double(), samples)
    with pytest.raises(ValueError, match=r"samples.offsets: expected dtype torch.int32"):
        prune(densities, samples._replace(offsets=samples.offsets.long()))
    with pytest.raises(ValueError, match=r"alpha_thre: expected shape \[\], got \[2\]"):
        prune(densities, samples, alpha_thre=torch.zeros(2))
    with pytest.raises(ValueError, match=r"capacity: .* got -1"):
        prune(densities, samples, capacity=-1)
    with pytest.raises(ValueError, match=r"early_stop_eps: .* got nan"):
        prune(densities, samples, early_stop_eps=math.nan)
