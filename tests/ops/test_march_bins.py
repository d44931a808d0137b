"""The march of rays each of which has a grid of its own among several: that of its bin in time, say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.march import count_reference, march
from lightning_nerf.types import Rays
from tests.ops.harness import DEVICES, rand, to
from tests.ops.test_march import (
    AABB,
    arguments,
    check_kernels,
    kernels_only,
    of_all_lengths,
    random_grid,
    random_rays,
)


def random_bins(n: int, n_bins: int) -> Tensor:
    return (rand(n, seed=9) * n_bins).int()


def only_bin(shape: tuple[int, ...], index: int) -> Tensor:
    """True in all cells of one bin."""
    return torch.zeros(shape, dtype=torch.bool).index_fill_(0, torch.tensor([index]), True)


CASES: dict[str, tuple[Any, ...]] = {
    "random": arguments(random_rays(100), random_grid((5, 1, 16, 12, 9)), bins=random_bins(100, 5)),
    "levels": arguments(
        random_rays(80), random_grid((3, 3, 5, 7, 6)), AABB / 3, step=0.01, cone=1 / 64, bins=random_bins(80, 3)
    ),
    "rays that are walked": of_all_lengths(random_grid((4, 1, 8, 8, 8)), random_bins(40, 4)),
    "more segments than are listed": arguments(
        random_rays(20), random_grid((2, 1, 8, 8, 8), 0.9), step=0.0003, bins=random_bins(20, 2)
    ),
    "rays of several groups": arguments(
        random_rays(700), random_grid((8, 1, 32, 32, 32), 0.02), jitter=rand(700, seed=8), bins=random_bins(700, 8)
    ),
    "coarse blocks of several": arguments(
        random_rays(60), random_grid((2, 2, 40, 33, 150), 0.01), AABB / 2, step=0.01, bins=random_bins(60, 2)
    ),
    "some of which are empty": arguments(
        random_rays(60), random_grid((4, 1, 8, 8, 8)) & only_bin((4, 1, 8, 8, 8), 1), bins=random_bins(60, 4)
    ),
    "one bin": arguments(random_rays(60), random_grid((1, 1, 8, 8, 8)), bins=random_bins(60, 1)),
    "bins that there are not": arguments(
        random_rays(60), random_grid((3, 1, 8, 8, 8)), bins=torch.tensor([-(2**31), -1, 3, 2**31 - 1]).int().repeat(15)
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_exactly_the_reference(device: str, name: str) -> None:
    assert check_kernels(CASES[name], device, opcheck=name == "random").any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_each_bin_is_marched_like_a_grid_of_its_own(device: str, name: str) -> None:
    origins, directions, near, far, jitter, occupancy, aabb, step, cone, bins = to(device, CASES[name])
    options = {"step_size": step, "cone_angle": cone}
    for some in (None, jitter):
        together = march(Rays(origins, directions, near, far), occupancy, aabb, **options, jitter=some, bins=bins)
        for i, grid in enumerate(occupancy):
            of_bin = (bins.clamp(0, len(occupancy) - 1) == i).nonzero()[:, 0]
            rays = Rays(*(t[of_bin] for t in (origins, directions, near, far)))
            alone = march(rays, grid, aabb, **options, jitter=None if some is None else some[of_bin])
            here = torch.isin(together.ray_indices, of_bin)
            assert torch.equal(together.offsets.diff()[of_bin], alone.offsets.diff())
            assert torch.equal(together.ray_indices[here].long(), of_bin[alone.ray_indices.long()])
            assert torch.equal(together.t_starts[here], alone.t_starts)
            assert torch.equal(together.t_ends[here], alone.t_ends)


@kernels_only
def test_the_comparison_detects_a_neighbor_s_bin() -> None:
    args = CASES["random"]

    def mutated(*values: Any) -> tuple[Tensor, Tensor]:
        return count_reference(*values[:-1], values[-1].roll(1))

    counts = torch.ops.lightning_nerf.march_count(*args)[0]
    assert not torch.equal(counts, mutated(*args)[0])
    assert torch.equal(counts, count_reference(*args)[0])


def test_bad_arguments_are_named() -> None:
    rays, grid, bins = random_rays(4), random_grid((1, 4, 4, 4)), torch.zeros(4, dtype=torch.int32)
    bad: list[tuple[Tensor, Tensor | None, str]] = [
        (grid, bins, r"occupancy: expected shape \[B, L, X, Y, Z\], got \[1, 4, 4, 4\]"),
        (grid[None], None, r"occupancy: expected shape \[L, X, Y, Z\], got \[1, 1, 4, 4, 4\]"),
        (grid[None], bins[1:], r"bins: expected shape \[4\], got \[3\]"),
        (grid[None], bins.long(), r"bins: expected dtype torch.int32, got torch.int64"),
        (grid[None][:0], bins, r"occupancy: expected 1 to 2\*\*16 - 1 bins"),
        (random_grid((2, 9, 1, 1, 1)), bins, r"occupancy: expected 1 to 8 levels .* got \[2, 9, 1, 1, 1\]"),
    ]
    for occupancy, of_ray, message in bad:
        with pytest.raises(ValueError, match=message):
            march(rays, occupancy, AABB, step_size=0.1, bins=of_ray)
