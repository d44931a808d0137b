from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.pack import MAX_COUNT, pack, reference
from tests.ops.harness import DEVICES, assert_detected, check_op

CASES = [
    ([], 5),
    ([3], 3),
    ([3], 2),
    ([0, 0, 0], 0),
    ([1, 4, 0, 2, 5], 12),
    ([1, 4, 0, 2, 5], 6),  # the ray of 2 does not fit
    ([1, 4, 0, 2, 0, 1], 6),  # nor do smaller and empty ones after it
    ([0, 7, 0], 6),
    ([5, MAX_COUNT, 1], MAX_COUNT),  # saturated: never fits
    ([MAX_COUNT], MAX_COUNT),
    ([MAX_COUNT - 1, 1, 1], MAX_COUNT),
    ([MAX_COUNT - 1] * 5, MAX_COUNT),
]


def brute_force(counts: list[int], capacity: int) -> tuple[list[int], list[bool]]:
    offsets, kept = [0], []
    for count in counts:
        fits = all(kept) and count != MAX_COUNT and offsets[-1] + count <= capacity
        kept.append(fits)
        offsets.append(offsets[-1] + count * fits)
    return offsets, kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counts", "capacity"), CASES)
def test_small_cases(device: str, counts: list[int], capacity: int) -> None:
    args = (torch.tensor(counts, dtype=torch.int32), capacity)
    check_op("pack_offsets", reference, args, device=device, rtol=0, atol=0)
    offsets, kept = pack(args[0].to(device), capacity)
    assert (offsets.tolist(), kept.tolist()) == brute_force(counts, capacity)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1000, 200_003])
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_many_rays(device: str, n: int, share: float) -> None:
    counts = torch.randint(0, 9000, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.int32)
    capacity = int(share * min(int(counts.sum()), MAX_COUNT))
    check_op("pack_offsets", reference, (counts, capacity), device=device, rtol=0, atol=0, opcheck=False)
    offsets, kept = pack(counts.to(device), capacity)
    assert int(offsets[-1]) == int(counts[kept.cpu()].sum()) <= capacity


def test_without_capacity_all_are_kept() -> None:
    offsets, kept = pack(torch.tensor([2, 0, 3], dtype=torch.int32))
    assert offsets.tolist() == [0, 2, 2, 5]
    assert bool(kept.all())


def test_the_comparison_detects_a_packing_of_whatever_fits() -> None:
    def mutated(counts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        offsets, _ = reference(counts, capacity)
        return offsets, counts <= capacity - offsets[:-1]

    args = (torch.tensor([1, 4, 0, 2, 0, 1], dtype=torch.int32), 6)
    assert_detected(lambda: check_op("pack_offsets", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"counts: expected dtype torch.int32, got torch.int64"):
        pack(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"counts: expected shape \[R\]"):
        pack(torch.zeros(3, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"capacity: .* got -1"):
        pack(torch.zeros(3, dtype=torch.int32), -1)
    with pytest.raises(ValueError, match=r"capacity: .* got 2147483648"):
        pack(torch.zeros(3, dtype=torch.int32), 2**31)
