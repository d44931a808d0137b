from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.ops.march import march
from lightning_nerf.ops.random import STREAM_JITTER, make_key, random_uniform
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.visibility import prune
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import DEVICES, rand

BOX = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
RADIUS = 0.6


def ball(positions: Tensor, center: float = 0.0) -> Tensor:
    return 50.0 * ((positions - center).norm(dim=-1) < RADIUS)


def empty(positions: Tensor) -> Tensor:
    return torch.zeros_like(positions[:, 0])


def bound(device: str = "cpu", **arguments: Any) -> OccupancyGrid:
    grid = OccupancyGrid(**{"resolution": 16, **arguments}).to(device)
    grid.bind(BOX)
    return grid


def found(device: str = "cpu", density: Callable[..., Tensor] = ball, **arguments: Any) -> OccupancyGrid:
    grid = bound(device, **arguments)
    grid.update(density, step=0, key=make_key(0, device=device))
    return grid


def train(grid: OccupancyGrid, density: Callable[..., Tensor], steps: range) -> None:
    for step in steps:
        grid.update(density, step=step, key=make_key(0, step=step, device=grid.occs.device))


def rays(n: int, device: str = "cpu", seed: int = 0, times: bool = False) -> Rays:
    """From a sphere of radius 3 into the box."""
    origins = torch.nn.functional.normalize(rand(n, 3, seed=seed, low=-1.0), dim=-1) * 3
    directions = torch.nn.functional.normalize(rand(n, 3, seed=seed + 1, low=-0.7, high=0.7) - origins, dim=-1)
    made = (origins, directions, torch.zeros(n), torch.full((n,), 10.0), rand(n, seed=seed + 2) if times else None)
    return Rays(*(None if t is None else t.to(device) for t in made))  # type: ignore[arg-type]


def cell_distances(resolution: int, levels: int = 1) -> tuple[Tensor, Tensor]:
    """Distance of each cell's nearest and farthest point from the box's center, [L, X, Y, Z]."""
    edge = torch.linspace(-1, 1, resolution + 1)
    low, high = edge[:-1], edge[1:]
    near = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
    far = torch.maximum(low.abs(), high.abs())
    squares = [sum(s**2 for s in torch.meshgrid(d, d, d, indexing="ij")) for d in (near, far)]
    scale = 2.0 ** torch.arange(levels)[:, None, None, None]
    return squares[0].sqrt() * scale, squares[1].sqrt() * scale  # type: ignore[union-attr]


def same(a: PackedSamples, b: PackedSamples) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("levels", [1, 3])
def test_a_ball_is_found(device: str, levels: int) -> None:
    grid = found(device, n_levels=levels)
    near, far = cell_distances(16, levels)
    assert grid.binaries.cpu()[far < RADIUS].all()
    assert not grid.binaries.cpu()[near > RADIUS].any()
    assert float(grid.occupied_share()) == pytest.approx(float(grid.binaries.float().mean()))
    train(grid, ball, range(256, 296))
    assert grid.binaries.cpu()[far < RADIUS].all()
    assert not grid.binaries.cpu()[near > RADIUS].any()
    # Draws have met the cells at the border, too; coarse ones may have only a corner in the ball.
    assert grid.binaries[0].cpu()[near[0] < 0.95 * RADIUS].float().mean() > 0.95


@pytest.mark.parametrize("device", DEVICES)
def test_the_grid_follows_the_field(device: str) -> None:
    def left(positions: Tensor) -> Tensor:
        return 50.0 * (positions[:, 0] < -0.5)

    def right(positions: Tensor) -> Tensor:
        return left(-positions)

    grid = found(device, left, decay=0.6)
    assert torch.equal(grid.binaries[0].any(-1).any(-1), grid.binaries[0].all(-1).all(-1))
    assert grid.binaries[0, :, 0, 0].tolist() == [True] * 4 + [False] * 12
    train(grid, right, range(256, 316))
    assert grid.binaries[0, :4].sum() == 0
    assert grid.binaries[0, 12:].all()
    train(grid, left, range(1))
    assert grid.binaries[0, :4].all()


def test_cells_are_all_in_order_and_then_a_quarter_and_a_quarter() -> None:
    grid = found(n_levels=2, warmup_steps=3)
    torch.testing.assert_close(grid.cells(2, make_key(0)), torch.arange(2 * 4096, dtype=torch.int32))
    cells = grid.cells(3, make_key(0)).long().view(2, 2048)
    assert grid.binaries.view(-1)[cells[:, 1024:]].all()
    for level in range(2):
        assert torch.equal(cells[level] // 4096, torch.full((2048,), level))
    assert grid.cells(3, make_key(0)).unique().numel() > 2 * 1024


@pytest.mark.parametrize("device", DEVICES)
def test_updates_depend_on_seed_rank_and_step_alone(device: str) -> None:
    def noise(positions: Tensor) -> Tensor:
        return (positions * 1000).sin().prod(-1).abs()

    def state(key: Tensor) -> Tensor:
        grid = found(device, noise)
        for step in (300, 301):
            grid.update(noise, step=step, key=key.to(device))
        return grid.occs

    keys = [make_key(0), make_key(1), make_key(0, rank=1), make_key(0, step=7)]
    states = [state(key) for key in keys]
    torch.testing.assert_close(state(keys[0]), states[0], rtol=0, atol=0)
    for i, a in enumerate(states):
        for b in states[:i]:
            assert not torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_buffers_stay_where_they_are(device: str) -> None:
    grid = OccupancyGrid(resolution=8).to(device)
    pointers = {name: buffer.data_ptr() for name, buffer in grid.named_buffers()}
    saved = {"aabb", "occs", "binaries", "mean", "bound"}
    assert set(grid.state_dict()) == saved == set(pointers) - {"_zero"}
    grid.bind(BOX)
    grid.mark_invisible_cells(torch.eye(3, 4, device=device)[None], torch.full((4,), 50.0, device=device), 100, 100)
    train(grid, ball, range(254, 258))
    grid.load_state_dict(copy.deepcopy(grid.state_dict()))
    assert {name: buffer.data_ptr() for name, buffer in grid.named_buffers()} == pointers


def test_densities_that_are_not_finite_leave_their_cells() -> None:
    grid = found()
    before = grid.occs.clone()

    def broken(positions: Tensor) -> Tensor:
        odd = positions.new_tensor([float("nan"), float("inf"), -1.0])
        return torch.where(positions[:, 0] > 0, odd[torch.arange(len(positions)) % 3], 50.0)

    train(grid, broken, range(1, 2))
    after, before = grid.occs.view(16, -1), before.view(16, -1)
    torch.testing.assert_close(after[8:], before[8:], rtol=0, atol=0)
    assert (after[:8] > 0.1).all()
    assert grid.occs.isfinite().all()
    train(grid, lambda p: torch.full_like(p[:, 0], float("nan")), range(2, 4))
    torch.testing.assert_close(grid.occs.view(16, -1), after, rtol=0, atol=0)


def test_half_of_the_box_is_invisible_for_good() -> None:
    grid = bound()
    # At the center, looking along -z, nearly 180 degrees wide.
    grid.mark_invisible_cells(torch.eye(3, 4)[None], torch.tensor([0.5, 0.5, 50.0, 50.0]), 100, 100)
    assert grid.binaries[..., :8].all()
    assert not grid.binaries[..., 9:].any()  # a cell's half diagonal reaches beyond z = 0
    train(grid, lambda p: torch.full_like(p[:, 0], 50.0), range(254, 264))
    assert grid.binaries[..., :8].all()
    assert not grid.binaries[..., 9:].any()
    assert (grid.occs.view(16, 16, 16)[..., 9:] == -1).all()
    assert float(grid.mean) == pytest.approx(50 * grid.render_step_size)


@pytest.mark.parametrize("device", DEVICES)
def test_an_empty_grid_gives_no_samples(device: str) -> None:
    grid = found(device, empty)
    assert grid.occupied_share() == 0
    for density in (None, ball):
        assert grid.sample(rays(5, device), density).t_starts.shape == (0,)
        samples = grid.sample(rays(5, device), density, capacity=7, march_capacity=9)
        assert samples.t_starts.shape == (7,)
        assert samples.offsets.tolist() == [0] * 6
        assert samples.kept.all()


@pytest.mark.parametrize("device", DEVICES)
def test_no_rays(device: str) -> None:
    for samples in (
        found(device).sample(rays(0, device), ball, key=make_key(0, device=device)),
        found(device).sample(rays(0, device), ball, capacity=0, march_capacity=8),
    ):
        assert samples.t_starts.shape == (0,)
        assert samples.offsets.tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
def test_samples_are_march_then_prune(device: str) -> None:
    grid, some = found(device, early_stop_eps=1e-2), rays(64, device)
    marched = march(some, grid.binaries, grid.aabb, step_size=grid.render_step_size)
    same(grid.sample(some), marched)
    same(
        grid.sample(some, capacity=5000),
        march(some, grid.binaries, grid.aabb, step_size=grid.render_step_size, capacity=5000),
    )
    kept = grid.sample(some, ball)
    expected = prune(ball(sample_points(some, marched)[0]), marched, early_stop_eps=1e-2, alpha_thre=0.01)
    same(kept, expected)
    assert 0 < len(kept.t_starts) < len(marched.t_starts) / 2  # opaque after 27 steps of 0.0034
    positions, _, _ = sample_points(some, kept)
    assert (positions.norm(dim=-1) < RADIUS).all()

    n, m = len(kept.t_starts), len(marched.t_starts)
    packed = grid.sample(some, ball, capacity=n + 3, march_capacity=m + 5)
    same(packed._replace(**{name: getattr(packed, name)[:n] for name in ("t_starts", "t_ends", "ray_indices")}), kept)
    assert not packed.t_ends[n:].any()
    assert not grid.sample(some, ball, capacity=n - 1).kept.all()
    assert not grid.sample(some, ball, capacity=n, march_capacity=m - 1).kept.all()


def test_jitter_is_a_function_of_the_key() -> None:
    grid, some = found(), rays(64)
    key = make_key(3, step=5)
    jitter = random_uniform(key, STREAM_JITTER, 64, 1)[:, 0]
    same(
        grid.sample(some, key=key),
        march(some, grid.binaries, grid.aabb, step_size=grid.render_step_size, jitter=jitter),
    )
    assert not torch.equal(grid.sample(some, key=make_key(3, step=6)).t_starts, grid.sample(some, key=key).t_starts)


def test_density_gets_times_where_rays_have_them_and_no_gradient() -> None:
    grid, seen = found(), []
    scale = torch.tensor(50.0, requires_grad=True)

    def density(positions: Tensor, times: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(times)
        return (scale * torch.ones_like(positions[:, 0])).half()  # half, as under autocast

    some = rays(16, times=True)
    samples = grid.sample(some, density)
    assert not samples.t_starts.requires_grad
    marched = grid.sample(some)
    assert torch.equal(seen[0], some.times[marched.ray_indices.long()])  # type: ignore[index]
    grid.sample(some._replace(times=None), density)
    assert seen[1] is None
    grid.update(density, step=0, key=make_key(0))
    assert grid.mean == pytest.approx(50 * grid.render_step_size, rel=1e-6)


@pytest.mark.parametrize("value", [1e-6, 1.0, 2.0])
def test_a_young_field_of_constant_density_keeps_its_samples(value: float) -> None:
    """Its opacity lies below both thresholds; without samples it would never learn."""

    def density(positions: Tensor) -> Tensor:
        return torch.full_like(positions[:, 0], value)

    grid = found(density=density)
    assert value * grid.render_step_size < grid.threshold
    assert grid.occupied_share() == 1
    same(grid.sample(rays(32), density), grid.sample(rays(32)))


def test_before_the_first_update_all_is_occupied() -> None:
    grid = bound()
    assert grid.occupied_share() == 1
    same(grid.sample(rays(8), lambda p: torch.full_like(p[:, 0], 1e-3)), grid.sample(rays(8)))


def test_a_scene_must_be_bound() -> None:
    grid = OccupancyGrid(resolution=8)
    for use in (
        lambda: grid.sample(rays(2)),
        lambda: grid.update(ball, step=0, key=make_key(0)),
        lambda: grid.mark_invisible_cells(torch.eye(3, 4)[None], torch.ones(4), 1, 1),
    ):
        with pytest.raises(RuntimeError, match="not bound to a scene"):
            use()
    for corners in ([[0.0, 0, 0], [1, 1, 0]], [[0.0, 0, 0], [1, 1, float("nan")]]):
        with pytest.raises(ValueError, match=r"scene_box: expected finite corners"):
            grid.bind(SceneBox(torch.tensor(corners)))


@pytest.mark.parametrize(("key", "value"), [("bound", torch.tensor(False)), ("aabb", torch.full((2, 3), float("nan")))])
def test_a_grid_is_not_loaded_half_bound(key: str, value: Tensor) -> None:
    with pytest.raises(BadArgument, match=r"^bound: expected (True|False) beside this aabb, got (True|False)$"):
        OccupancyGrid(resolution=16).load_state_dict({**found().state_dict(), key: value})


def test_binding_again_keeps_the_grid_of_the_same_box_only() -> None:
    grid = found()
    occs = grid.occs.clone()
    grid.bind(BOX)
    torch.testing.assert_close(grid.occs, occs, rtol=0, atol=0)
    grid.bind(SceneBox(BOX.aabb * 2))
    assert grid.render_step_size == pytest.approx(2 * 12**0.5 / 1024)
    assert not grid.occs.any()
    assert grid.binaries.all()
    assert grid.mean == 0


def test_a_loaded_grid_is_bound() -> None:
    grid, loaded = found(), OccupancyGrid(resolution=16)
    torch.nn.Sequential(loaded).load_state_dict(torch.nn.Sequential(grid).state_dict())
    assert loaded.render_step_size == grid.render_step_size == pytest.approx(12**0.5 / 1024)
    same(loaded.sample(rays(8), ball), grid.sample(rays(8), ball))
    assert found(step_size=0.01).render_step_size == 0.01


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 300])
def test_shares_of_several_processes_are_what_one_evaluates(n: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disjoint shares of its cells at its points, and with the maximum of their values every grid is the one's."""
    whole = found(n_levels=2)
    shares = [copy.deepcopy(whole) for _ in range(n)]
    evaluated: list[Tensor] = []

    def bumps(positions: Tensor) -> Tensor:
        evaluated.append(positions)
        return 20 * (positions * 40).sin().prod(-1)  # many fade: decay counts

    key = make_key(0, step=step)
    before = whole.occs.clone()
    whole.update(bumps, step=step, key=key)
    assert ((whole.occs > 0) & (whole.occs < before)).any()
    assert n == 1 or not torch.equal(whole.binaries, shares[0].binaries)
    alone = evaluated.pop()
    newest: list[Tensor] = []
    monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: newest.append(new.clone()) or new)
    for part, grid in enumerate(shares):
        copy.deepcopy(grid).update(bumps, step=step, key=key, share=(part, n))
    torch.testing.assert_close(torch.cat(evaluated), alone, rtol=0, atol=0)
    assert max(map(len, evaluated)) - min(map(len, evaluated)) <= 1
    if n > 1:
        monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: torch.stack(newest).amax(0))
    for part, grid in enumerate(shares):
        grid.update(bumps, step=step, key=key, share=(part, n))
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(grid.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_there_is_not_is_named(share: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="share: expected"):
        found().update(ball, step=0, key=make_key(0), share=share)


@pytest.mark.gpu
def test_no_host_synchronization() -> None:
    grid, some, key = found("cuda"), rays(64, "cuda"), make_key(0, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (0, 300):
            grid.update(ball, step=step, key=key)
        grid.sample(some, ball, key=key, capacity=4096, march_capacity=2**15)
        grid.occupied_share()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resolution", 0),
        ("resolution", 2000),
        ("n_levels", 0),
        ("n_levels", 9),
        ("decay", 1.5),
        ("threshold", -1.0),
        ("threshold", float("nan")),
        ("warmup_steps", -1),
        ("step_size", 0.0),
        ("step_size", float("inf")),
        ("cone_angle", -0.1),
        ("alpha_threshold", 1.0),
        ("early_stop_eps", -1e-4),
    ],
)
def test_bad_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value}$"):
        OccupancyGrid(**{name: value})  # type: ignore[arg-type]


def test_densities_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"density_fn: expected values of shape \[4096\], got \[4096, 1\]"):
        found(density=lambda p: p[:, :1])


@pytest.mark.parametrize("half", [1.4e-45, 1e-40, 3e38])
def test_boxes_as_small_and_as_large_as_floats(half: float) -> None:
    grid = OccupancyGrid(resolution=2).bind([-half] * 3 + [half] * 3)
    assert 0 < grid.render_step_size < float("inf")
    _, t_starts, t_ends = grid.sampling(torch.zeros(2, 3), torch.eye(3)[:2])
    assert (t_starts <= t_ends).all()
    assert t_ends.isfinite().all()
