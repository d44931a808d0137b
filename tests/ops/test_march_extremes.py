"""Rays, boxes and steps at the ends of float32: the march ends, soon, and says what does not fit."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_nerf.ops.march import march
from lightning_nerf.types import Rays
from tests.ops.harness import DEVICES, to
from tests.ops.test_march import AABB, INF, UNIT, extreme_rays, kernels_only, random_grid, random_rays, timed_march


@kernels_only
@pytest.mark.parametrize("device", DEVICES)
def test_an_endless_empty_ray_ends(device: str) -> None:
    """1e12 lattice points to far = 1e9, or to inf; steps down to the smallest float; all outside or in empty cells."""
    base = random_rays(32)
    for far, cone, step, size in itertools.product((1e9, INF), (0.0, 1e-9, 1 / 256), (1e-3, 1e-12, 2e-45), (1.0, 1e9)):
        rays = Rays(*to(device, base._replace(near=base.near * 0, far=base.far * 0 + far)[:4]))
        empty = torch.zeros(8, 16, 16, 16, dtype=torch.bool, device=device)
        samples = timed_march(rays, empty, (AABB * size).to(device), step_size=step, cone_angle=cone)
        assert int(samples.offsets[-1]) == 0


@kernels_only
@pytest.mark.parametrize("device", DEVICES)
def test_sparse_cells_of_a_huge_box_are_found(device: str) -> None:
    """A box of 1e9 with one occupied cell at its far end; the ray comes from the opposite face."""
    occupancy = torch.zeros(1, 1000, 1, 1, dtype=torch.bool, device=device)
    occupancy[0, 999] = True
    aabb = torch.tensor([[0.0, -1, -1], [1e9, 1, 1]], device=device)
    rays = Rays(*to(device, (torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.full((1,), INF))))
    samples = timed_march(rays, occupancy, aabb, step_size=1e3)
    assert abs(int(samples.offsets[-1]) - 1000) <= 1
    torch.testing.assert_close(samples.t_starts[0].item(), 0.999e9, rtol=2e-6, atol=0)
    # A step of 1e-3 is far below the spacing of floats there (64): 1e9 samples of that cell, counted but not written.
    samples = timed_march(rays, occupancy, aabb, step_size=1e-3, capacity=10)
    assert samples.kept.tolist() == [False]
    counts = torch.ops.lightning_nerf.march_count(*rays[:4], None, occupancy, aabb, 1e-3, 0.0, None)[0]
    # The cell's ends are known to the spacing of floats, 64 in 1e6, and to their roundings in units of the box.
    torch.testing.assert_close(int(counts), 10**9, rtol=3e-4, atol=0)


@kernels_only
@pytest.mark.parametrize("device", DEVICES)
def test_more_samples_than_int32_are_reported(device: str) -> None:
    occupancy = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    aabb = torch.tensor([[-1e9] * 3, [1e9] * 3], device=device)
    origins, directions = torch.zeros(3, 3), torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    for cone in (0.0, 1e-12):
        rays = Rays(*to(device, (origins, directions, torch.zeros(3), torch.tensor([1.0, INF, 1e9]))))
        with pytest.raises(ValueError, match="2 of 3 rays do not fit"):
            timed_march(rays, occupancy, aabb, step_size=1e-3, cone_angle=cone)
        samples = timed_march(rays, occupancy, aabb, step_size=1e-3, cone_angle=cone, capacity=2000)
        assert samples.kept.tolist() == [True, False, False]
        assert samples.offsets.tolist() == [0, 1000, 1000, 1000]


@kernels_only
@pytest.mark.parametrize("device", DEVICES)
def test_extreme_rays_end(device: str) -> None:
    rays = extreme_rays()
    for far, step, cone in itertools.product((None, 1e30, INF), (1e-30, 1.0, 1e30), (0.0, 1e-300, 1e10)):
        moved = rays if far is None else rays._replace(far=torch.full_like(rays.far, far))
        for size in (1.0, 1e-38, 1e38):
            grid = random_grid((3, 3, 4, 5), 0.5).to(device)
            timed_march(
                Rays(*to(device, moved[:4])), grid, (UNIT * size).to(device), step_size=step, cone_angle=cone, capacity=1000
            )


@pytest.mark.parametrize("device", DEVICES)
def test_steps_below_the_spacing_of_floats_add_up(device: str) -> None:
    """At t = 2^20 floats are 1/8 apart; steps of 1/100 mostly have no length, and together that of the interval."""
    origins, directions = torch.tensor([[-(2.0**20), 0, 0]]), torch.tensor([[1.0, 0, 0]])
    rays = Rays(*to(device, (origins, directions, torch.tensor([2.0**20 - 1]), torch.tensor([2.0**20 + 1]))))
    samples = march(rays, torch.ones(1, 2, 2, 2, dtype=torch.bool, device=device), UNIT.to(device), step_size=0.01)
    assert abs(len(samples.t_starts) - 200) <= 13  # the box's ends, to the spacing of floats
    lengths = samples.t_ends - samples.t_starts
    assert bool((lengths >= 0).all())
    assert abs(float(lengths.sum()) - 2) <= 0.25
