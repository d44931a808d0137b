"""A grid of each bin in time: which bin rays read, which one an update renews, and what moves is never skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.estimators.time_bins import TimeBins
from lightning_nerf.ops.march import march
from lightning_nerf.ops.random import make_key
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.types import PackedSamples
from tests.estimators.moving_ball import FIRST, LAST, ball, bound, fog, rays, same, train
from tests.ops.harness import DEVICES

# -- which bin a ray reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "times", "expected"),
    [
        ((0.0, 1.0), [0.0, 0.24, 0.26, 0.6, 0.99, 1.0], [0, 0, 1, 2, 3, 3]),
        ((1.0, 0.0), [0.0, 0.26, 1.0], [0, 1, 3]),  # backwards
        ((-3.0, 5.0), [-1.1, -0.9, 4.9], [0, 1, 3]),
        ((0.0, 1.0), [-9.0, 1.5, 3e38, -3e38, float("inf"), -float("inf"), float("nan")], [0, 3, 3, 0, 3, 0, 0]),
        ((2.0, 2.0), [2.0, 1.0, 3.0], [0, 0, 3]),  # one moment: all bins hold the same
    ],
)
def test_a_time_belongs_to_the_bin_that_holds_it_or_the_nearest(
    span: tuple[float, float], times: list[float], expected: list[int]
) -> None:
    bins = TimeBins(4)
    assert bins.of(torch.tensor(times)).tolist() == [0] * len(times)  # before the span is known
    assert bins.learn(span)
    assert not bins.learn(span)
    assert bins.of(torch.tensor(times)).tolist() == expected
    assert bins.of(torch.tensor(times)).dtype == torch.int32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("levels", [1, 2])
def test_each_ray_marches_through_the_grid_of_its_bin(device: str, levels: int) -> None:
    grid, some = bound(device, n_levels=levels), rays(200, device, FIRST - 1, LAST + 1)
    train(grid, ball, 16)
    assert grid.bins is not None
    together, of_ray = grid.place(some).samples, grid.bins.of(some.times)  # type: ignore[arg-type]
    assert len(of_ray.unique()) == 8
    for b in range(8):
        chosen = (of_ray == b).nonzero()[:, 0]
        alone = march(some.map(lambda t: t[chosen]), grid.binaries[b], grid.aabb, step_size=0.025)  # noqa: B023
        here = torch.isin(together.ray_indices, chosen)
        assert torch.equal(together.t_starts[here], alone.t_starts)
        assert torch.equal(together.offsets.diff()[chosen], alone.offsets.diff())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("time", [FIRST - 1, FIRST, 3.3, LAST])
def test_rays_of_one_time_are_marched_through_one_grid(device: str, time: float) -> None:
    """The times of a frame are one number, expanded; no other bin is read, and the samples are the same."""
    grid, some = bound(device), rays(100, device)
    train(grid, ball, 16)
    one = torch.tensor(time, device=device)
    frame, apart = some._replace(times=one.expand(100)), some._replace(times=one.repeat(100))
    assert grid.bins is not None
    assert grid.bins.of_rays(grid.binaries, frame.times, 100)[1] is None
    assert grid.bins.of_rays(grid.binaries, apart.times, 100)[1] is not None
    same(grid.place(frame).samples, grid.place(apart).samples)
    same(grid.place(frame, capacity=300).samples, grid.place(apart, capacity=300).samples)
    single = frame.map(lambda t: t[3:4])
    same(grid.place(single).samples, grid.place(single._replace(times=single.times.clone())).samples)  # type: ignore[union-attr]


def test_no_rays_and_a_grid_without_updates() -> None:
    assert bound().place(rays(0)).samples.offsets.tolist() == [0]
    same(bound().place(rays(20)).samples, bound(n_times=1).place(rays(20)).samples)
    assert bound().occupied_share() == 1


# -- what an update renews --------------------------------------------------------------------------------------------


class Noted:
    """A density that keeps where and when it was asked."""

    def __init__(self, density: Callable[..., Tensor] = ball) -> None:
        self.density = density
        self.positions: list[Tensor] = []
        self.times: list[Tensor] = []

    def __call__(self, positions: Tensor, times: Tensor) -> Tensor:
        self.positions.append(positions)
        self.times.append(times)
        return self.density(positions, times)


@pytest.mark.parametrize("n_times", [2, 3, 8, 11])
def test_updates_visit_each_bin_in_turn_at_its_own_times(n_times: int) -> None:
    grid, noted, width = bound(n_times=n_times, warmup_steps=0), Noted(), (LAST - FIRST) / n_times
    train(grid, noted, 2 * n_times)
    middles = torch.stack([(times.amin() + times.amax()) / 2 for times in noted.times])
    assert [len(times) for times in noted.times] == [4096] * n_times + [2048] * n_times  # first visits see all cells
    for visits in (middles[:n_times], middles[n_times:]):
        assert len(((visits - FIRST) / width).int().unique()) == n_times
    assert min(float(times.amin()) for times in noted.times) == pytest.approx(FIRST, abs=0.01)
    assert max(float(times.amax()) for times in noted.times) == pytest.approx(LAST, abs=0.01)
    for times in noted.times:
        low, high = max(FIRST, float(times.amin())), min(LAST, float(times.amax()))
        inner = low > FIRST + 0.01 and high < LAST - 0.01
        assert high - low == pytest.approx(min(2 if inner else 1.5, n_times) * width, abs=0.02 * width)


def test_bins_without_a_visit_hold_what_visits_of_others_found() -> None:
    grid = bound()
    train(grid, ball, 1)
    assert 0 < grid.occupied_share() < 0.2
    assert (grid.binaries == grid.binaries[0]).all()
    train(grid, ball, 2, first=1)
    visited = [0, 3, 6] if grid.bins is None else [update * grid.bins._stride % 8 for update in range(3)]
    waiting = [b for b in range(8) if b not in visited]
    assert torch.equal(grid.binaries[waiting[0]], grid.binaries[visited].any(0))
    assert len({grid.binaries[b].sum().item() for b in waiting}) == 1
    assert not grid.occs[waiting].any()


def coverage(grid: OccupancyGrid, factor: float = 1.0, n: int = 3000) -> tuple[int, int, int]:
    """Lattice points whose opacity is ``factor`` times the grid's threshold or more, those of them skipped; samples."""
    some = rays(n)
    everywhere = bound(n_times=1, step_size=grid.render_step_size).place(some).samples
    positions, _, times = sample_points(some, everywhere)
    assert times is not None
    matters = ball(positions, times) * grid.render_step_size >= factor * grid.threshold
    found = grid.place(some).samples

    def identity(samples: PackedSamples) -> Tensor:
        return samples.ray_indices.long() * 2**20 + (samples.t_starts / grid.render_step_size).round().long()

    skipped = matters & ~torch.isin(identity(everywhere), identity(found))
    return int(matters.sum()), int(skipped.sum()), len(found.t_starts)


def test_nothing_that_moves_is_skipped_after_the_first_visits() -> None:
    for n_times in (8, 16):
        grid = bound(resolution=32, n_times=n_times)
        train(grid, ball, n_times)
        matter, skipped, _ = coverage(grid)
        assert matter > 4000
        assert skipped == 0


def test_nothing_that_moves_is_skipped_between_times_of_training_and_fewer_samples_are_marched() -> None:
    """Of what is twice as opaque as the threshold; of what just reaches it, less than by a grid for all times."""
    bins, union = bound(resolution=64, n_times=16), bound(resolution=64, n_times=1, decay=0.99)
    train(bins, ball, 96)
    train(union, ball, 96)
    matter, skipped, _ = coverage(bins, 2.0)
    assert matter > 4000
    assert skipped == 0
    matter, skipped, marched = coverage(bins)
    _, missed, whole = coverage(union)
    assert skipped < 0.005 * matter
    assert skipped < missed
    assert whole > 1.3 * marched


@pytest.mark.parametrize(("name", "value"), [("_grown", lambda cells: cells), ("_MARGIN", -0.25)])
def test_visits_without_a_margin_skip_something(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can tell."""
    monkeypatch.setattr(f"lightning_nerf.estimators.time_bins.{name}", value)
    grid = bound(resolution=32)
    train(grid, ball, 8)
    assert coverage(grid)[1] > 0


@pytest.mark.parametrize("value", [1e-30, 1e-6, 1.0, 2.0, 1e30])
@pytest.mark.parametrize("warmup_steps", [0, 10**6])
def test_a_young_field_of_constant_density_fills_all_bins(value: float, warmup_steps: int) -> None:
    def density(positions: Tensor, times: Tensor) -> Tensor:
        return torch.full_like(times, value)

    grid, query = bound(warmup_steps=warmup_steps), rays(16)
    train(grid, density, 30)
    assert grid.occupied_share() == 1
    assert grid.occupied_shares().tolist() == [1.0] * 8
    torch.testing.assert_close(grid.mean, torch.full((8,), value * 0.025), rtol=2**-7, atol=0)
    if value < 10:  # nothing is hidden
        same(grid.sample(query, density), grid.place(query).samples)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_values_fade_at_any_decay_and_stay_finite(decay: float) -> None:
    def huge(positions: Tensor, times: Tensor) -> Tensor:
        return torch.full_like(times, 3.4e38)

    grid = bound(n_times=2, decay=decay, step_size=1.0)
    train(grid, huge, 2)
    assert grid.occs.isfinite().all()
    for update in range(2, 8):
        before = grid.occs.clone()
        train(grid, lambda positions, times: torch.zeros_like(times), 1, first=update)
        visited = grid.occs != before
        assert visited.any(1).sum() == 1
        assert visited[visited.any(1)].all()
        assert (grid.occs <= before).all()


def test_densities_that_are_not_finite_leave_their_cells() -> None:
    grid = bound()
    train(grid, ball, 8)
    before = grid.occs.clone(), grid.binaries.clone()
    train(grid, lambda positions, times: torch.full_like(times, float("nan")), 8, first=8)
    assert torch.equal(grid.occs, before[0])
    assert not (grid.binaries & ~before[1]).any()


def test_a_range_of_other_times_starts_afresh_but_for_cells_that_no_camera_sees() -> None:
    grid = bound()
    grid.mark_invisible_cells(torch.eye(3, 4)[None], torch.tensor([0.5, 0.5, 50.0, 50.0]), 100, 100)
    unseen = grid.occs < 0
    assert (unseen == unseen[0]).all()
    assert 0.3 < unseen.float().mean() < 0.5
    assert not grid.binaries.flatten(1)[unseen].any()
    train(grid, fog, 9)
    assert torch.equal(grid.occs < 0, unseen)
    assert torch.equal(grid.binaries.flatten(1), ~unseen)
    other = copy.deepcopy(grid)
    other.update(ball, step=0, key=make_key(0), times=(FIRST, LAST + 1))
    fresh = bound()
    fresh.mark_invisible_cells(torch.eye(3, 4)[None], torch.tensor([0.5, 0.5, 50.0, 50.0]), 100, 100)
    fresh.update(ball, step=0, key=make_key(0), times=(FIRST, LAST + 1))
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_another_box_starts_afresh() -> None:
    grid = bound()
    train(grid, ball, 9)
    grid.bind([-2, -2, -2, 2, 2, 2])
    assert not grid.occs.any()
    assert grid.binaries.all()
    noted = Noted()
    train(grid, noted, 1, first=1000)
    assert len(noted.times[0]) == 4096  # a first visit


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("updates", [1, 30])
def test_shares_of_several_processes_are_what_one_evaluates(n: int, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bound(n_levels=2)
    train(whole, ball, updates)
    start, alone, parts = copy.deepcopy(whole), Noted(), Noted()
    options = {"step": 16 * updates, "key": make_key(0, step=99), "times": (FIRST, LAST)}
    whole.update(alone, **options)
    newest: list[Tensor] = []
    monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: newest.append(new.clone()) or new)
    for part in range(n):
        copy.deepcopy(start).update(parts, **options, share=(part, n))
    assert torch.equal(torch.cat(parts.times), alone.times[0])
    assert torch.equal(torch.cat(parts.positions), alone.positions[0])
    monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: torch.stack(newest).amax(0))
    start.update(parts, **options, share=(0, n))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], value, rtol=0, atol=0)
