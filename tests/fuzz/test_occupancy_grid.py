from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf import OccupancyGrid
from tests.fuzz.rays import CENTERS, LIMITS, assert_samples, box, planes, rays, steps, too_many
from tests.fuzz.strategies import FLOATS, INF, NAN, STRANGE, answer, assert_finite, bounded, fuzz, tensors
from tests.ops.harness import DEVICES


def recurring(values: Tensor, n: int) -> Tensor:
    """[n] of a few values."""
    return values[torch.arange(n, device=values.device) % len(values)]


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_sampling(device: str, data: st.DataObject) -> None:
    center = data.draw(st.sampled_from(CENTERS))
    grid = OccupancyGrid(resolution=data.draw(st.integers(1, 4)), n_levels=data.draw(st.integers(1, 3))).to(device)
    grid.bind(box(center, 1.0, device))
    rays_o, rays_d = data.draw(rays(device, center))
    n = len(rays_o)
    values = data.draw(tensors((7,), STRANGE, device, FLOATS))

    def function(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        assert ray_indices.dtype == torch.int64
        return recurring(values, len(t_starts))

    named = data.draw(st.sampled_from([{}, {"sigma_fn": function}, {"alpha_fn": function}]))
    step = data.draw(steps())
    options: dict[str, Any] = {
        "near_plane": data.draw(st.sampled_from(LIMITS)),
        "far_plane": data.draw(st.sampled_from(LIMITS)),
        "t_min": data.draw(planes(n, device)),
        "t_max": data.draw(planes(n, device)),
        "render_step_size": step["step_size"],
        "cone_angle": step["cone_angle"],
        "early_stop_eps": data.draw(st.sampled_from([None, 0.0, 1e-4, 1.0])),
        "alpha_thre": data.draw(st.sampled_from([None, 0.0, 0.01, 1.0])),
        "stratified": data.draw(st.booleans()),
    }
    # Where no more than 2^31 samples fit, the error says to take a larger step.
    found = answer(["step_size"], lambda: grid.sampling(rays_o, rays_d, **named, **options))
    assert found is not None or too_many(step["step_size"], rays_d)
    if found is not None:
        assert_samples(found, n, device)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_update(device: str, data: st.DataObject) -> None:
    grid = OccupancyGrid(resolution=data.draw(st.integers(1, 4)), n_levels=data.draw(st.integers(1, 3))).to(device)
    grid.bind(box(data.draw(st.sampled_from(CENTERS)), data.draw(st.sampled_from([0.25, 1.0, 1e6])), device))
    values = data.draw(tensors((7,), STRANGE, device, FLOATS))
    times = data.draw(st.none() | st.tuples(*[st.sampled_from([0.0, 1.0, -1e30, 3e38, INF, NAN])] * 2))
    for step in data.draw(st.lists(st.sampled_from([0, 1, 255, 256, 10**9]), max_size=3)):
        density = lambda points, times=None: recurring(values, len(points))  # noqa: E731
        answer(["times"], lambda: grid.update(density, step=step, times=times))  # noqa: B023
        assert_finite(grid.aabb, grid.occs, grid.mean)
        assert (grid.occs >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_bind(device: str, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(6,), (2, 3), (5,), (3, 2), (0,), ()]))
    corners = data.draw(tensors(shape, (0.0, 1.0, -1.0, 1e6, 1e-45, 3e38, -3e38, NAN, INF), device, FLOATS))
    if data.draw(st.booleans()) and corners.numel() == 6:
        corners = corners.view(2, 3).sort(0).values.view(shape)
    given_ = data.draw(st.sampled_from([corners, corners.tolist()]))
    grid = OccupancyGrid(resolution=2).to(device)
    if answer(["scene_box"], lambda: grid.bind(given_)) is None:
        return
    assert math.isfinite(grid.render_step_size)
    rays_o, rays_d = torch.zeros(2, 3, device=device), torch.eye(3, device=device)[:2]
    assert_samples(grid.sampling(rays_o, rays_d), 2, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("far", [1e9, 1e10, INF])
@pytest.mark.parametrize("distance", [0.0, 1e6])
def test_a_giant_ray(device: str, far: float, distance: float) -> None:
    """10^5 samples and more; at a distance of 1e6 their spacing is far below that of floats."""
    grid = OccupancyGrid(resolution=4).to(device).bind(box(distance, 1.0, device))
    origins = torch.tensor([[0.0, distance, distance]], device=device)
    directions = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    with bounded():
        found = grid.sampling(origins, directions, far_plane=far, render_step_size=8e-6)
        assert_samples(found, 1, device)
        assert len(found[0]) > 10**5
