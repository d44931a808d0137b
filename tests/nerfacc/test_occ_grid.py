from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc import OccGridEstimator, traverse_grids
from tests.nerfacc.occ_grids import BOX, SHAPE, estimator, random_rays
from tests.ops.harness import DEVICES, rand

NAN = math.nan


def test_buffers_are_those_of_nerfacc() -> None:
    grid = OccGridEstimator(torch.tensor(BOX), resolution=5, levels=3)
    state = {k: (v.dtype, tuple(v.shape)) for k, v in grid.state_dict().items()}
    assert state == {
        "resolution": (torch.int32, (3,)),
        "aabbs": (torch.float32, (3, 6)),
        "occs": (torch.float32, (375,)),
        "binaries": (torch.bool, (3, 5, 5, 5)),
    }
    assert grid.grid_coords.shape == (125, 3)
    assert grid.grid_coords[1 + 5 * (2 + 5 * 3)].tolist() == [3, 2, 1]
    assert grid.grid_indices.tolist() == list(range(125))
    assert grid.grid_coords.dtype == grid.grid_indices.dtype == torch.int64
    assert grid.cells_per_lvl == 125
    assert grid.levels == 3
    assert grid.device == torch.device("cpu")
    assert grid.aabbs[2].tolist() == [-4, -3.5, -3, 4, 4.5, 5]
    assert not grid.occs.any()
    assert not grid.binaries.any()


def test_a_checkpoint_of_nerfacc_loads_in_place() -> None:
    saved = {
        "resolution": torch.tensor(SHAPE, dtype=torch.int32),
        "aabbs": torch.tensor([[0.0, 0, 0, 1, 1, 1], [-0.5, -0.5, -0.5, 1.5, 1.5, 1.5]]),
        "occs": rand(2 * 192, seed=0),
        "binaries": rand(2, *SHAPE, seed=0) > 0.5,
    }
    grid = estimator()
    pointers = {name: buffer.data_ptr() for name, buffer in grid.named_buffers()}
    assert not any(grid.load_state_dict(saved))
    for name, value in saved.items():
        torch.testing.assert_close(getattr(grid, name), value, rtol=0, atol=0)
    assert {name: buffer.data_ptr() for name, buffer in grid.named_buffers()} == pointers


@pytest.mark.parametrize("device", DEVICES)
def test_sampling_is_traversal(device: str) -> None:
    grid, rays = estimator(device, share=0.4), random_rays(device)
    t_min, t_max = rand(60, seed=6).to(device) * 2, 1 + 3 * rand(60, seed=7).to(device)
    for kwargs, near, far in (
        ({}, None, torch.full((60,), 1e10, device=device)),
        (
            {"near_plane": 0.4, "far_plane": 2.0},
            torch.full((60,), 0.4, device=device),
            torch.full((60,), 2.0, device=device),
        ),
        ({"near_plane": 0.4, "t_min": t_min}, t_min.clamp(min=0.4), torch.full((60,), 1e10, device=device)),
        ({"far_plane": 2.0, "t_max": t_max, "t_min": t_min}, t_min, t_max.clamp(max=2.0)),
        ({"far_plane": 2.0, "cone_angle": 0.05}, None, torch.full((60,), 2.0, device=device)),
    ):
        ray_indices, t_starts, t_ends = grid.sampling(*rays, render_step_size=0.03, **kwargs)  # type: ignore[arg-type]
        intervals, samples, _ = traverse_grids(
            *rays, grid.binaries, grid.aabbs, near, far, step_size=0.03, cone_angle=float(kwargs.get("cone_angle", 0.0))
        )
        assert len(ray_indices) > 50
        assert ray_indices.dtype == torch.int64
        assert samples.ray_indices is not None
        torch.testing.assert_close(ray_indices, samples.ray_indices, rtol=0, atol=0)
        torch.testing.assert_close(t_starts, intervals.vals[intervals.is_left], rtol=0, atol=0)
        torch.testing.assert_close(t_ends, intervals.vals[intervals.is_right], rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_boxes_and_grids_may_be_replaced(device: str) -> None:
    grid, rays = estimator(device), random_rays(device)
    assert len(grid.sampling(*rays, render_step_size=0.05)[0]) == 0
    grid.binaries = torch.ones(2, 4, 4, 4, dtype=torch.bool, device=device)  # as in NerfAcc's own tests
    grid.aabbs[1].copy_(torch.tensor([0.5, 0.5, 0.5, 3.0, 3.0, 3.0]))  # nested no more
    ray_indices, t_starts, t_ends = grid.sampling(*rays, render_step_size=0.05)
    points = (rays[0][ray_indices] + ((t_starts + t_ends) / 2)[:, None] * rays[1][ray_indices])[:, None]
    inside = ((points >= grid.aabbs[:, :3] - 1e-5) & (points <= grid.aabbs[:, 3:] + 1e-5)).all(-1)
    assert inside.any(-1).all()
    assert (~inside[:, 0]).sum() > 20


@pytest.mark.parametrize("device", DEVICES)
def test_stratified_rays_begin_within_a_step(device: str) -> None:
    grid, rays = estimator(device, share=2.0), (torch.zeros(500, 3, device=device), torch.ones(500, 3, device=device))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ray_indices, t_starts, _ = grid.sampling(*rays, near_plane=0.1, render_step_size=0.05, stratified=True)
        first = t_starts[torch.searchsorted(ray_indices, torch.arange(500, device=device))] - 0.1
        assert (first >= 0).all()
        assert (first < 0.05).all()
        # Uniform: mean 1/2 and standard deviation 0.29 of a step; five standard errors.
        assert abs(float(first.mean()) / 0.05 - 0.5) < 5 * 0.29 / 500**0.5
        assert abs(float(first.std()) / 0.05 - 12**-0.5) < 0.05
        draws.append(first)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def seen(alphas: Tensor, ray_indices: Tensor, early_stop_eps: float, alpha_thre: float) -> Tensor:
    """One after the other, in float64."""
    keeps, ray, trans = [], -1, 1.0
    for r, alpha in zip(ray_indices.tolist(), alphas.double().tolist(), strict=True):
        trans = trans if r == ray else 1.0
        keeps.append(trans >= early_stop_eps and alpha >= alpha_thre)
        ray, trans = r, trans * (1 - alpha)
    return torch.tensor(keeps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["sigma", "alpha"])
@pytest.mark.parametrize(
    ("early_stop_eps", "alpha_thre", "mean"),
    [(1e-4, 0.0, 0.0), (0.0, 0.05, 1.0), (1e-2, 0.05, 1.0), (1e-2, 0.3, 0.1), (1e-2, 0.3, -0.5)],
)
def test_what_cannot_be_seen_is_dropped(
    device: str, kind: str, early_stop_eps: float, alpha_thre: float, mean: float
) -> None:
    grid, rays = estimator(device, share=0.5), random_rays(device)
    grid.occs.fill_(mean)
    calls = []

    def densities(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert ray_indices.dtype == torch.int64
        assert t_starts.shape == t_ends.shape == ray_indices.shape
        calls.append((t_starts, t_ends, ray_indices))
        return rand(len(t_starts), seed=8, low=-0.3, high=1.0).clamp(min=0).pow(4).to(device) * 40

    def alphas(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return -torch.expm1(-densities(t_starts, t_ends, ray_indices) * (t_ends - t_starts))

    limits = {"render_step_size": 0.05, "early_stop_eps": early_stop_eps, "alpha_thre": alpha_thre}
    got = grid.sampling(*rays, **{f"{kind}_fn": densities if kind == "sigma" else alphas}, **limits)  # type: ignore[arg-type]
    (candidates,) = calls
    for a, b in zip(candidates, grid.sampling(*rays, render_step_size=0.05), strict=False):
        assert len(a) == len(b)
    with torch.no_grad():
        keeps = seen(alphas(*candidates), candidates[2], early_stop_eps, min(alpha_thre, mean))
    assert len(keeps) / 20 < keeps.sum() < len(keeps) or alpha_thre == 0 or mean < 0
    t_starts, t_ends, ray_indices = (x.cpu()[keeps] for x in candidates)
    for a, b in zip(got, (ray_indices, t_starts, t_ends), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0)  # and the dtype


@pytest.mark.parametrize("device", DEVICES)
def test_opacities_at_the_threshold_stay_and_odd_ones_do_no_harm(device: str) -> None:
    grid = estimator(device, levels=1, share=2.0)
    grid.occs.fill_(1.0)
    rays = (torch.tensor([[-1.0, 0.0, 1.0]], device=device), torch.tensor([[1.0, 0.0, 0.0]], device=device))
    for value in (1e-10, 0.01, 0.3, 0.999, 1.0 - 2**-24):
        kept = grid.sampling(
            *rays,
            alpha_fn=lambda t, *_, a=value: torch.full_like(t, a),
            render_step_size=0.25,
            early_stop_eps=0.0,
            alpha_thre=value,
        )
        assert len(kept[0]) == 8
    for values, n in (([0.0, 0.5, 1.0, 0.5], 3), ([0.0, NAN, -3.0, 0.5], 8), ([0.5, 2.0, 0.5, 0.5], 2), ([1.0], 1)):
        odd = (values + [0.0] * 8)[:8]
        kept = grid.sampling(*rays, alpha_fn=lambda t, *_, v=odd: torch.tensor(v, device=t.device), render_step_size=0.25)
        assert kept[1].tolist() == [0.25 * i for i in range(n)]


def test_functions_are_asked_only_where_it_matters() -> None:
    def fail(*_: Tensor) -> Tensor:
        raise AssertionError

    grid, rays = estimator(share=0.5), random_rays("cpu")
    assert len(grid.sampling(*rays, fail, early_stop_eps=0.0, render_step_size=0.1)[0]) > 0
    assert len(grid.sampling(rays[0] + 100, rays[1], fail, render_step_size=0.1)[0]) == 0
    assert len(grid.sampling(rays[0][:0], rays[1][:0], fail, alpha_fn=fail)[0]) == 0
    assert len(grid.sampling(rays[0] * NAN, rays[1], fail)[0]) == 0
    for name in ("sigma_fn", "alpha_fn"):
        with pytest.raises(ValueError, match=name):
            grid.sampling(*rays, **{name: lambda t, *_: t[:, None]}, render_step_size=0.1)  # type: ignore[arg-type]
    half = grid.sampling(*rays, lambda t, *_: torch.ones_like(t).half(), render_step_size=0.1)  # as under autocast
    assert half[1].dtype == torch.float32


def test_wrong_arguments_are_named() -> None:
    for kwargs, name in (
        ({"resolution": [4, 4]}, "resolution"),
        ({"resolution": 0}, "resolution"),
        ({"roi_aabb": [0.0, 0, 0]}, "roi_aabb"),
        ({"levels": 0}, "levels"),
        ({"contraction_type": None}, "contraction_type"),
    ):
        with pytest.raises(ValueError, match=name):
            OccGridEstimator(**{"roi_aabb": BOX, **kwargs})  # type: ignore[arg-type]
    grid, (origins, directions) = estimator(share=1.0), random_rays("cpu")
    for kwargs, name in (
        ({"rays_o": origins.double()}, "rays_o"),
        ({"rays_d": directions[1:]}, "rays_d"),
        ({"t_min": torch.zeros(3)}, "t_min"),
        ({"t_max": torch.zeros(60, 1)}, "t_max"),
        ({"cone_angle": -1.0}, "cone_angle"),
    ):
        with pytest.raises(ValueError, match=name):
            grid.sampling(**{"rays_o": origins, "rays_d": directions, **kwargs})  # type: ignore[arg-type]
