from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc import OccGridEstimator, traverse_grids
from tests.ops.harness import DEVICES, generator, rand

BOX = [-1.0, -0.5, 0.0, 1.0, 1.5, 2.0]
SHAPE = (4, 8, 6)
NAN, INF = math.nan, math.inf


def estimator(device: str = "cpu", levels: int = 2, share: float | None = None) -> OccGridEstimator:
    grid = OccGridEstimator(BOX, resolution=list(SHAPE), levels=levels).to(device)
    if share is not None:
        grid.binaries.copy_(rand(*grid.binaries.shape, seed=1) < share)
    return grid


def random_rays(device: str, n: int = 60) -> tuple[Tensor, Tensor]:
    origins = rand(n, 3, seed=4, low=-3, high=3)
    directions = rand(n, 3, seed=5, low=-1) - 0.3 * origins
    return origins.to(device), torch.nn.functional.normalize(directions, dim=-1).to(device)


def cells_of(grid: OccGridEstimator, points: Tensor, level: int) -> Tensor:
    """Indices over all levels of the cells that hold points of a level."""
    box = grid.aabbs[level].double()
    place = (points.double() - box[:3]) / (box[3:] - box[:3]) * torch.tensor(SHAPE, device=points.device)
    x, y, z = place.long().unbind(-1)
    assert ((place >= 0) & (place < torch.tensor(SHAPE, device=points.device))).all()
    return ((level * SHAPE[0] + x) * SHAPE[1] + y) * SHAPE[2] + z


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
        ({"near_plane": 0.4, "far_plane": 2.0}, torch.full((60,), 0.4, device=device), torch.full((60,), 2.0, device=device)),
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
        ray_indices, t_starts, t_ends = grid.sampling(*rays, near_plane=0.1, render_step_size=0.05, stratified=True)
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
            *rays, alpha_fn=lambda t, *_, a=value: torch.full_like(t, a), render_step_size=0.25, early_stop_eps=0.0, alpha_thre=value
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


@pytest.mark.parametrize("device", DEVICES)
def test_warm_up_evaluates_a_point_in_each_cell(device: str) -> None:
    grid, calls = estimator(device), []
    grid.occs.copy_(rand(384, seed=2))
    grid.occs[rand(384, seed=3).to(device) < 0.1] = -1.0
    before = grid.occs.clone()

    def occupancy(points: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        calls.append(points)
        return points[:, :1].sin().abs()

    grid._update(step=255, occ_eval_fn=occupancy, occ_thre=0.9, ema_decay=0.5)
    assert len(calls) == 2
    found = torch.empty_like(before)
    for level, points in enumerate(calls):
        cells = cells_of(grid, points, level)
        assert torch.equal(cells, torch.arange(192, device=device) + 192 * level)
        found[cells] = points[:, 0].sin().abs()
    expected = torch.where(before < 0, before, torch.maximum(before * 0.5, found))
    torch.testing.assert_close(grid.occs, expected, rtol=0, atol=0)
    threshold = expected[expected >= 0].mean().clamp(max=0.9)
    assert 0.3 < threshold < 0.9
    assert torch.equal(grid.binaries.flatten(), expected > threshold)
    grid._update(step=0, occ_eval_fn=occupancy, occ_thre=0.1)
    assert torch.equal(grid.binaries.flatten(), grid.occs > 0.1)
    assert not torch.equal(calls[0], calls[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.1, 0.24, 0.6, 0.0])
def test_later_a_quarter_and_the_occupied_are_evaluated(device: str, share: float) -> None:
    grid, calls = estimator(device, share=share), []
    occupied = grid.binaries.flatten().clone()
    grid.occs.copy_(rand(384, seed=2) + 0.5)
    before = grid.occs.clone()

    def occupancy(points: Tensor) -> Tensor:
        calls.append(points)
        return points[:, 0].sin().abs()

    grid._update(step=256, occ_eval_fn=occupancy, ema_decay=0.5)
    found = torch.full_like(before, -1.0)
    for level, points in enumerate(calls):
        assert points.shape == (96, 3)
        cells, here = cells_of(grid, points, level), occupied[192 * level : 192 * (level + 1)]
        second = cells[48:] - 192 * level
        if here.any():
            assert here[second].all()
        if 0 < here.sum() <= 48:
            assert torch.equal(second.unique(), here.nonzero()[:, 0])
        else:
            assert second.unique().numel() > 20
        assert 20 < cells[:48].unique().numel() <= 48
        found.scatter_reduce_(0, cells, points[:, 0].sin().abs(), "amax")
    expected = torch.where(found < 0, before, torch.maximum(before * 0.5, found))
    torch.testing.assert_close(grid.occs, expected, rtol=0, atol=0)
    assert torch.equal(grid.binaries.flatten(), expected > 0.01)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [0, 1000])
def test_odd_values_leave_their_cells(device: str, step: int) -> None:
    values = torch.tensor([NAN, INF, -INF, -1.0, 0.0, 0.25], device=device)
    expected = torch.tensor([0.5, 0.5, 0.5, 0.25, 0.25, 0.25], device=device)  # negative: like nothing
    for value, occ in zip(values, expected, strict=True):
        grid = estimator(device)
        grid.occs.fill_(0.5)
        grid.occs[::7] = -1.0
        grid.binaries.fill_(True)
        grid._update(step, lambda p, v=value: v.expand(len(p)), ema_decay=0.5)
        visible = grid.occs >= 0
        assert torch.equal(visible, torch.arange(384, device=device) % 7 != 0)
        if step == 0:
            assert (grid.occs[visible] == occ).all()
        else:
            assert set(grid.occs[visible].tolist()) == {0.5, float(occ)}
        assert not grid.binaries.flatten()[~visible].any()


def test_a_constant_field_fills_the_grid() -> None:
    grid = estimator()
    grid._update(0, lambda p: torch.full_like(p[:, 0], 1e-5))
    assert grid.binaries.all()
    grid._update(0, lambda p: torch.zeros_like(p[:, 0]), ema_decay=0.0)
    assert not grid.binaries.any()


def test_updates_come_every_n_steps_and_in_training_only() -> None:
    grid, steps = estimator(), []
    for step in range(33):
        grid.update_every_n_steps(step, lambda p, s=step: (steps.append(s), p[:, 0].abs())[1])
    assert steps == [0, 0, 16, 16, 32, 32]  # one call per level
    grid.eval()
    with pytest.raises(RuntimeError, match="training"):
        grid.update_every_n_steps(0, lambda p: p[:, 0])
    with pytest.raises(ValueError, match="occ_eval_fn"):
        grid._update(0, lambda p: p)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_are_those_of_torch_and_buffers_stay(device: str) -> None:
    states = []
    for seed in (0, 0, 1):
        grid = estimator(device)
        pointers = {name: buffer.data_ptr() for name, buffer in grid.named_buffers()}
        torch.manual_seed(seed)
        grid.mark_invisible_cells(torch.eye(3, device=device)[None], torch.eye(4, device=device)[None], 1, 1)
        for step in (0, 256, 512):
            grid.update_every_n_steps(step, lambda p: (p * 100).sin().prod(-1).abs())
        assert {name: buffer.data_ptr() for name, buffer in grid.named_buffers()} == pointers
        states.append(grid.occs)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("near", [0.0, 1.0])
def test_cells_that_no_camera_sees_are_marked(device: str, views: int, near: float) -> None:
    grid = estimator(device)
    grid.occs.copy_(rand(384, seed=0))
    grid.occs[::11] = -1.0
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, :3, :3] = torch.linalg.qr(torch.randn(views, 3, 3, generator=generator(2))).Q
    c2w[:, :3, 3] = rand(views, 3, seed=9, low=-1)
    K = torch.tensor([[[40.0, 1.0, 30.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]]]).repeat(views, 1, 1)  # noqa: N806
    K[:, 0, 0] += torch.arange(views)
    before = grid.occs.tolist()
    for poses in (c2w, c2w[:, :3]):
        copy = estimator(device)
        copy.load_state_dict(grid.state_dict())
        copy.mark_invisible_cells(K.to(device), poses.to(device), 60, 40, near, chunk=100)
        marked = copy.occs.tolist()
        assert 10 < sum(occ == 0 for occ in marked) < 340
        for cell, occ in enumerate(marked):
            level, place = cell // 192, grid.grid_coords[cell % 192].cpu().double()
            box = grid.aabbs[level].cpu().double()
            point = box[:3] + place / (torch.tensor(SHAPE) - 1) * (box[3:] - box[:3])
            is_seen, too_near = False, False
            for intrinsics, pose in zip(K.double(), c2w.double(), strict=True):
                x, y, depth = (intrinsics @ (pose[:3, :3].T @ (point - pose[:3, 3]))).tolist()
                if depth > 0 and 0 <= x / depth < 60 and 0 <= y / depth < 40:
                    is_seen, too_near = is_seen or depth >= near, too_near or depth < near
            assert occ == (-1.0 if before[cell] < 0 or not is_seen or too_near else 0.0)
    for arguments in ((K[0], c2w), (K, c2w[0]), (K.repeat(2, 1, 1), c2w)):
        with pytest.raises(ValueError, match="expected shape"):
            grid.mark_invisible_cells(*arguments, 60, 40)


@pytest.mark.parametrize("device", DEVICES)
def test_cells_can_be_listed(device: str) -> None:
    grid = estimator(device, share=0.1)
    grid.occs[[0, 5, 191, 200]] = -1.0
    first, second = grid._get_all_cells()
    assert first.tolist() == [i for i in range(192) if i not in (0, 5, 191)]
    assert second.tolist() == [i for i in range(192) if i != 8]
    for level, cells in enumerate(grid._sample_uniform_and_occupied_cells(40)):
        assert cells.shape == (80,)
        assert cells.dtype == torch.int64
        assert torch.equal(cells[40:].unique(), grid.binaries[level].flatten().nonzero()[:, 0])


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


@pytest.mark.gpu
def test_updates_do_not_synchronise_and_sampling_does_for_its_count() -> None:
    grid, rays = estimator("cuda", levels=1), random_rays("cuda")

    def occupancy(points: Tensor) -> Tensor:
        return points[:, :1].abs()

    def densities(t_starts: Tensor, *_: Tensor) -> Tensor:
        return torch.ones_like(t_starts)

    grid._update(0, occupancy)
    grid.sampling(*rays, densities, render_step_size=0.05, alpha_thre=0.01)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in (0, 256):
            grid._update(step, occupancy)
        torch.cuda.set_sync_debug_mode("warn")
        for function, times in ((None, 1), (densities, 2)):
            with pytest.warns(UserWarning, match="synchronizing") as record:
                grid.sampling(*rays, function, render_step_size=0.05, alpha_thre=0.01, stratified=True)
            assert len(record) == times
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.gpu
def test_the_same_as_nerfacc() -> None:
    peer = pytest.importorskip("nerfacc")
    grids = [cls(BOX, resolution=list(SHAPE), levels=2).cuda() for cls in (OccGridEstimator, peer.OccGridEstimator)]
    assert {k: (v.dtype, v.shape) for k, v in grids[0].state_dict().items()} == {
        k: (v.dtype, v.shape) for k, v in grids[1].state_dict().items()
    }

    def by_cell(points: Tensor) -> Tensor:
        """The same for all points of a cell, so that draws do not matter."""
        level = int(points.abs().amax() > 2.0)
        return (cells_of(grids[0], points, level).float() * 12.9898).sin().abs()[:, None] * 0.02

    for step in (0, 16):
        for grid in grids:
            grid.update_every_n_steps(step, by_cell)
        torch.testing.assert_close(grids[0].occs, grids[1].occs, rtol=0, atol=0)
        assert torch.equal(grids[0].binaries, grids[1].binaries)
    grids[0].load_state_dict(grids[1].state_dict())
    origins, directions = random_rays("cuda", 300)

    def densities(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return 5 + t_starts.sin()

    for function in (None, densities):
        lengths = [torch.zeros(300, device="cuda") for _ in grids]
        for grid, length in zip(grids, lengths, strict=True):
            ray_indices, t_starts, t_ends = grid.sampling(origins, directions, function, render_step_size=0.01)
            length.index_add_(0, ray_indices, t_ends - t_starts)
        # It sums its lattice up in float32: samples may change sides at some of the planes that a ray crosses.
        assert (lengths[0] - lengths[1]).abs().mean() < 0.01
