from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.ray_offsets import ray_offsets, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, ragged_offsets

COUNTS = {
    "no rays": [],
    "one ray": [5],
    "rays without samples": [0, 0, 0],
    "ragged": [0, 3, 1, 0, 17, 64, 5, 0, 2, 100, 33, 0],
    "many": [(7 * i) % 31 for i in range(3000)],
    "one long ray": [0, 20_000, 0],
}


def indices_of(counts: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts), dtype=dtype), torch.tensor(counts, dtype=torch.int64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_offsets_are_running_sums_of_the_counts(device: str, dtype: torch.dtype, counts: list[int]) -> None:
    ray_indices = indices_of(counts, dtype).to(device)
    offsets = ray_offsets(ray_indices, len(counts))
    assert offsets.dtype is torch.int32
    assert offsets.device.type == device
    assert torch.equal(offsets.cpu(), ragged_offsets(counts))
    check_op("ray_offsets", reference, (ray_indices, len(counts)), device=device, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_gaps_of_a_million_rays(device: str) -> None:
    ray_indices = torch.tensor([3, 3, 1_000_000, 1_999_999, 1_999_999]).to(device)
    offsets = ray_offsets(ray_indices, 2_000_000).cpu()
    assert offsets[[0, 3, 4, 1_000_000, 1_000_001, 1_999_999, 2_000_000]].tolist() == [0, 0, 2, 2, 3, 3, 5]
    assert (offsets.diff() >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_accepted(device: str) -> None:
    counts = COUNTS["ragged"]
    strided = torch.stack([indices_of(counts)] * 2, 1).to(device)[:, 0]
    assert torch.equal(ray_offsets(strided, len(counts)).cpu(), ragged_offsets(counts))


@pytest.mark.gpu
def test_what_cuda_makes_of_indices_that_it_cannot_refuse() -> None:
    outside = torch.tensor([-7, 0, 1, 1, 3, 9, 2**40], device="cuda")
    assert ray_offsets(outside, 4).tolist() == [0, 2, 4, 4, 5]
    unsorted = torch.randint(0, 50, (1000,), generator=torch.Generator().manual_seed(0)).cuda()
    offsets = ray_offsets(unsorted, 50)
    assert offsets[0] == 0
    assert ((offsets >= 0) & (offsets <= 1000)).all()


def test_the_comparison_detects_offsets_behind_a_ray() -> None:
    def mutated(ray_indices: Tensor, n_rays: int) -> Tensor:
        return torch.searchsorted(ray_indices, torch.arange(n_rays + 1), right=True).int()

    args = (indices_of(COUNTS["ragged"]), len(COUNTS["ragged"]))
    assert_detected(lambda: check_op("ray_offsets", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_are_named() -> None:
    good = indices_of([2, 1])
    with pytest.raises(ValueError, match=r"ray_indices: expected dtype torch.int64 or torch.int32, got torch.float32"):
        ray_offsets(good.float(), 2)
    with pytest.raises(ValueError, match=r"ray_indices: expected shape \[N\], got \[3, 1\]"):
        ray_offsets(good[:, None], 2)
    with pytest.raises(ValueError, match=r"ray_indices: expected indices in \[0, 1\), got 0 to 1"):
        ray_offsets(good, 1)
    with pytest.raises(ValueError, match=r"ray_indices: expected indices in \[0, 2\), got -1 to 1"):
        ray_offsets(torch.tensor([-1, 1]), 2)
    with pytest.raises(ValueError, match=r"ray_indices: expected indices that never fall"):
        ray_offsets(good.flip(0), 2)
    with pytest.raises(ValueError, match=r"n_rays: expected at least 1 for 3 samples"):
        ray_offsets(good, 0)
    with pytest.raises(ValueError, match=r"n_rays: .* got -1"):
        ray_offsets(good, -1)
