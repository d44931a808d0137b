from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.nerfacc.occ_grids import SHAPE, cells_of, estimator, random_rays
from tests.ops.harness import DEVICES, generator, rand

NAN, INF = math.nan, math.inf


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
        seen, occupied = grid.occs.view(2, -1)[level] >= 0, grid.binaries[level].flatten()
        assert 70 < len(cells) <= 80
        assert cells.dtype == torch.int64
        assert seen[cells].all()
        assert occupied[cells[40:]].all()
        assert set((occupied & seen).nonzero()[:, 0].tolist()) <= set(cells.tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_draws_leave_out_cells_that_no_camera_sees(device: str) -> None:
    grid = estimator(device, share=0.5)
    grid.occs[::2] = -1.0
    for cells in grid._sample_uniform_and_occupied_cells(40):
        assert len(cells) > 10
        assert (cells % 2 == 1).all()


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
            assert sum("synchronizing" in str(warning.message) for warning in record) == times
    finally:
        torch.cuda.set_sync_debug_mode(mode)
