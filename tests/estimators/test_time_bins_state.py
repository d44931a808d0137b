"""A grid with bins in time: what it keeps, loads and resumes, the memory that it takes, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_nerf.callbacks import OccupancyGridUpdate, RayBudget
from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.modules import InstantNGP
from lightning_nerf.ops.random import make_key
from tests.estimators.moving_ball import FIRST, LAST, ball, bound, rays, train
from tests.estimators.test_times import TimedField
from tests.executors.fits import assert_equal, fit
from tests.executors.replay import replay_without_gpu
from tests.scenes import timed_scene, tiny_module

ACCELERATORS = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


# -- state ------------------------------------------------------------------------------------------------------------


def test_one_grid_has_the_state_that_it_had_and_many_bins_have_more() -> None:
    one, many = OccupancyGrid(resolution=8), OccupancyGrid(resolution=8, n_times=64)
    assert list(one.state_dict()) == ["aabb", "occs", "binaries", "mean", "bound"]
    assert set(many.state_dict()) - set(one.state_dict()) == {"bins.span", "bins.updates"}
    assert many.binaries.shape == (64, 1, 8, 8, 8)


def full_size(device: str) -> OccupancyGrid:
    """64 bins of 128^3 cells."""
    with torch.device(device):
        return OccupancyGrid(resolution=128, n_times=64)


def test_the_buffers_of_64_bins_take_403_megabytes() -> None:
    """On the meta device, which keeps none of them."""
    grid = full_size("meta")
    assert grid.binaries.shape == (64, 1, 128, 128, 128)
    assert 402e6 < sum(buffer.nbytes for buffer in grid.buffers()) < 403e6


@pytest.mark.gpu
def test_64_bins_are_bound_renewed_and_marched_within_600_megabytes() -> None:
    """All that is allocated meanwhile: buffers, densities of all cells of a first visit, and samples."""
    some, key = rays(1024, "cuda"), make_key(0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grid = full_size("cuda").bind([-1, -1, -1, 1, 1, 1])
    grid.update(ball, step=0, key=key, times=(FIRST, LAST))
    placed = grid.place(some, key=key, capacity=2**18)
    assert int(placed.samples.offsets[-1]) > 0
    assert torch.cuda.max_memory_allocated() - before <= 600e6


@pytest.mark.parametrize("updates", [0, 3, 20])
def test_a_loaded_grid_goes_on_to_the_bit(updates: int) -> None:
    """With times that float32 does not hold."""
    grid, loaded, span = bound(), OccupancyGrid(resolution=16, n_times=8, decay=0.8, step_size=0.025), (0.1, 1 / 3)
    for update in range(updates):
        grid.update(ball, step=16 * update, key=make_key(0, step=update), times=span)
    pointers = {name: buffer.data_ptr() for name, buffer in loaded.named_buffers()}
    loaded.load_state_dict(copy.deepcopy(grid.state_dict()))
    for update in range(updates, updates + 10):
        for each in (grid, loaded):
            each.update(ball, step=16 * update, key=make_key(0, step=update), times=span)
    for name, value in grid.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    loaded.mark_invisible_cells(torch.eye(3, 4)[None], torch.full((4,), 50.0), 100, 100)
    assert {name: buffer.data_ptr() for name, buffer in loaded.named_buffers()} == pointers


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_bins_keep_their_float_types(convert: Callable[[nn.Module], nn.Module]) -> None:
    grid = bound()
    train(grid, ball, 9)
    expected = copy.deepcopy(grid)
    convert(grid)
    for each in (grid, expected):
        train(each, ball, 2, first=9)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(grid.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory|You're resuming|Be aware that when)")
def test_a_fit_learns_bins_and_a_resumed_one_goes_on_to_the_bit(
    tmp_path: Path, scene_cache: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured, eager, and captured again from the middle on: all the same."""
    if accelerator == "cpu":
        replay_without_gpu(monkeypatch)

    def one(strategy: str, **more: Any) -> tuple[InstantNGP, Any, Any]:
        torch.manual_seed(0)
        grid = OccupancyGrid(resolution=8, n_times=4, warmup_steps=8, step_size=0.1)
        module = tiny_module(field=TimedField(), estimator=grid)
        callbacks = [OccupancyGridUpdate(every_n_steps=2), RayBudget(every_n_steps=2), *more.pop("callbacks", [])]
        options = {"scene": timed_scene(scene_cache), "callbacks": callbacks, "max_steps": 24, **more}
        return fit(tmp_path, scene_cache, accelerator, strategy, module, **options)

    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=13, save_top_k=-1, filename="{step}")
    whole, seen, _ = one("nerf_cuda_graph", callbacks=[keep], enable_checkpointing=True)
    assert seen.replayed[-1]
    assert whole.estimator.bins.updates == 12
    assert whole.estimator.bins.span.tolist() == [FIRST, LAST]
    assert not (whole.estimator.mean == 0).any()
    assert_equal(whole, one("auto")[0])
    assert_equal(whole, one("nerf_cuda_graph", ckpt_path=tmp_path / "step=13.ckpt")[0])


@pytest.mark.gpu
def test_no_host_synchronization() -> None:
    grid, some, key = bound("cuda"), rays(64, "cuda"), make_key(0, device="cuda")
    one = some._replace(times=torch.tensor(3.0, device="cuda").expand(64))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in range(20):
            grid.update(ball, step=16 * update, key=key, times=(FIRST, LAST))
        for each in (some, one):
            grid.place(each, key=key, capacity=4096)
        grid.occupied_share()
    finally:
        torch.cuda.set_sync_debug_mode(before)


# -- what is refused --------------------------------------------------------------------------------------------------


NO_RANGES = [(0.0, float("nan")), (0.0, float("inf")), (0.0, 1e39), (-3e38, 3e38), (0.0,), (0.0, 1.0, 2.0), ("0", "1")]


@pytest.mark.parametrize("times", NO_RANGES)
def test_a_grid_for_all_times_needs_a_range_or_none(times: Any) -> None:
    grid = bound(n_times=1)
    with pytest.raises(BadArgument, match=r"^times: expected the first and the last time of the data, got \("):
        grid.update(ball, step=0, key=make_key(0), times=times)
    assert grid.binaries.all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("span", [float("nan"), 1.0]),
        ("span", [0.0, float("inf")]),
        ("span", [1.0, 0.0]),
        ("updates", -1),
    ],
)
def test_bins_that_cannot_be_are_not_loaded(name: str, value: Any) -> None:
    grid = bound()
    weights = grid.state_dict()
    weights[f"bins.{name}"] = torch.tensor(value)
    with pytest.raises(BadArgument, match=rf"bins\.{name}: expected"):
        bound().load_state_dict(weights)


@pytest.mark.parametrize("times", [None, *NO_RANGES])
def test_an_update_needs_the_range_of_times(times: tuple[float, float] | None) -> None:
    grid = bound()
    message = r"^times: expected the first and the last time of the data, since the grid has 8 bins in time, got "
    with pytest.raises(BadArgument, match=message):
        grid.update(ball, step=0, key=make_key(0), times=times)
    assert grid.binaries.all()


def test_rays_need_times() -> None:
    message = r"^rays.times: expected a time for each ray, since the grid has 8 bins in time, got None$"
    for use in (
        lambda: bound().place(rays(3)._replace(times=None)),
        lambda: bound().sampling(torch.zeros(2, 3), torch.ones(2, 3)),
    ):
        with pytest.raises(BadArgument, match=message):
            use()
    with pytest.raises(BadArgument, match=r"^rays.times: expected shape \[3\], got \[2\]$"):
        bound().place(rays(3)._replace(times=torch.zeros(2)))
    with pytest.raises(BadArgument, match=r"^times: expected shape \[2\], got \[3\]$"):
        bound().sampling(torch.zeros(2, 3), torch.ones(2, 3), times=torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_loop_says_the_times_of_its_rays(dtype: torch.dtype) -> None:
    grid, some = bound(), rays(50)
    train(grid, ball, 8)
    assert some.times is not None
    found = grid.sampling(some.origins, some.directions, far_plane=10.0, times=some.times.to(dtype))
    expected = grid.place(some).samples
    assert torch.equal(found[0], expected.ray_indices.long())
    assert torch.equal(found[1], expected.t_starts)
    assert torch.equal(found[2], expected.t_ends)


@pytest.mark.parametrize("value", [0, -1, 2**16])
def test_a_number_of_bins_that_cannot_be_is_named(value: int) -> None:
    with pytest.raises(BadArgument, match=rf"^n_times: expected .*, got {value}$"):
        OccupancyGrid(resolution=1, n_times=value)
