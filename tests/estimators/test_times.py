"""Fields that change with time, data that have times, and grids that have to hold for all of them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import RadianceField
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import FieldOutput
from tests.executors.fits import PlainField
from tests.ops.harness import DEVICES
from tests.scenes import timed_scene, tiny_module, tiny_scene, trainer

FIRST, LAST = 2.0, 5.0


def bound(device: str = "cpu", **options: int) -> OccupancyGrid:
    grid = OccupancyGrid(**{"resolution": 8, **options})  # type: ignore[arg-type]
    return grid.bind([-1, -1, -1, 1, 1, 1]).to(device)


class Noted:
    """A density that keeps where and when it was asked."""

    def __init__(self) -> None:
        self.positions: list[Tensor] = []
        self.times: list[Tensor | None] = []

    def __call__(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        self.positions.append(positions)
        self.times.append(times)
        return positions.norm(dim=-1) if times is None else times


class TimedField(PlainField):
    """Its density and its colors depend on the time."""

    wants = ("times",)

    def __init__(self) -> None:
        super().__init__()
        self.speed = torch.nn.Parameter(torch.zeros(3))
        self.asked: list[Tensor] = []

    def _at(self, positions: Tensor, times: Tensor) -> Tensor:
        self.asked.append(times)
        return positions + self.speed * (times[:, None] - FIRST)

    def density(self, positions: Tensor, times: Tensor) -> Tensor:  # type: ignore[override]
        return super().density(self._at(positions, times))

    def forward(self, positions: Tensor, directions: Tensor, times: Tensor) -> FieldOutput:  # type: ignore[override]
        return super().forward(self._at(positions, times), directions)


class KeywordField(TimedField):
    """Takes what it wants by keyword, as :class:`RadianceField` says, in an order of its own."""

    wants = ("footprints", "times")

    def density(self, positions: Tensor, footprints: Tensor | None = None, *, times: Tensor) -> Tensor:  # type: ignore[override]
        return super().density(positions, times)

    def forward(self, positions: Tensor, directions: Tensor, *, footprints: Tensor, times: Tensor) -> FieldOutput:  # type: ignore[override]
        return super().forward(positions, directions, times)


# -- the grid's update ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [0, 300])
def test_each_cell_is_evaluated_at_a_time_of_its_own_within_the_range(device: str, step: int) -> None:
    grid, noted = bound(device), Noted()
    grid.update(noted, step=step, key=make_key(0, step=step, device=device), times=(FIRST, LAST))
    (times,) = noted.times
    assert times is not None
    assert times.shape == noted.positions[0].shape[:1] == (512 if step == 0 else 256,)
    assert FIRST <= float(times.min()) < FIRST + 0.1
    assert LAST - 0.1 < float(times.max()) <= LAST
    assert float(times.mean()) == pytest.approx((FIRST + LAST) / 2, abs=0.2)
    assert len(times.unique()) > 0.99 * len(times)
    again = Noted()
    bound(device).update(again, step=0, key=make_key(0, step=step + 1, device=device), times=(FIRST, LAST))
    assert not torch.equal(again.times[0][:256], times[:256])  # type: ignore[index]


@pytest.mark.parametrize("times", [(FIRST, FIRST), (LAST, FIRST)])
def test_a_range_may_be_one_moment_or_run_backwards(times: tuple[float, float]) -> None:
    noted = Noted()
    bound().update(noted, step=0, key=make_key(0), times=times)
    assert noted.times[0] is not None
    assert min(times) <= float(noted.times[0].min()) <= float(noted.times[0].max()) <= max(times)


def test_without_a_range_a_density_gets_positions_alone() -> None:
    noted = Noted()
    bound().update(noted, step=0, key=make_key(0))
    assert noted.times == [None]


@pytest.mark.parametrize("step", [0, 300])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_shares_are_evaluated_at_the_times_of_the_whole(monkeypatch: pytest.MonkeyPatch, n: int, step: int) -> None:
    whole, noted = bound(n_levels=2), Noted()
    start = copy.deepcopy(whole)
    key, times = make_key(0, step=step), (FIRST, LAST)
    whole.update(noted, step=step, key=key, times=times)
    parts, newest = Noted(), []
    monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: newest.append(new.clone()) or new)
    for part in range(n):
        copy.deepcopy(start).update(parts, step=step, key=key, times=times, share=(part, n))
    assert torch.equal(torch.cat(parts.times), noted.times[0])  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts.positions), noted.positions[0])
    if n > 1:
        monkeypatch.setattr(OccupancyGrid, "combine", lambda self, new: torch.stack(newest).amax(0))
    start.update(parts, step=step, key=key, times=times, share=(0, n))
    assert torch.equal(start.occs, whole.occs)


def test_in_the_course_of_updates_a_cell_is_occupied_if_it_is_at_any_time() -> None:
    """Something crosses the box from left to right, one of its eight slabs of cells at a time."""

    def moving(positions: Tensor, times: Tensor) -> Tensor:
        here = -1 + 2 * (times - FIRST) / (LAST - FIRST)
        return 500.0 * ((positions[:, 0] - here).abs() < 0.25)

    grid = bound(warmup_steps=10**6)
    for step in range(40):
        grid.update(moving, step=step, key=make_key(0, step=step), times=(FIRST, LAST))
    assert grid.binaries.float().mean() > 0.95
    still = bound(warmup_steps=10**6)
    for step in range(40):
        still.update(moving, step=step, key=make_key(0, step=step), times=(FIRST, FIRST))
    assert not still.binaries[0, 2:].any()


# -- fits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TimedField, KeywordField])
def test_a_field_that_wants_times_learns_from_data_that_have_them(
    kind: type[TimedField], tmp_path: Path, scene_cache: Path
) -> None:
    torch.manual_seed(0)
    field = kind()
    module, scene = tiny_module(field=field), timed_scene(scene_cache)
    run = trainer(tmp_path, max_steps=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the training views have times")
        run.fit(module, scene)
    assert field.speed.abs().min() > 0
    asked = torch.cat(field.asked)
    assert float(asked.min()) == pytest.approx(FIRST, abs=1e-2)
    assert float(asked.max()) == pytest.approx(LAST, abs=1e-2)
    cameras = torch.linspace(FIRST, LAST, 6)
    in_rays = (asked[:, None] - cameras).abs().amin(1) < 1e-6
    assert 0.02 < in_rays.float().mean() < 1  # of samples; the others are of the grid's updates
    field.asked.clear()
    render = module.render_view("test", 1)
    assert render.rgb.isfinite().all()
    assert (torch.cat(field.asked) == LAST).all()


class StillField(PlainField):
    """Wants nothing, as most fields do."""


def said_of_times(folder: Path, field: RadianceField, scene: object) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(folder, max_steps=3).fit(tiny_module(field=field), scene)  # type: ignore[arg-type]
    return [str(w.message) for w in said if "times" in str(w.message)]


def test_a_static_field_on_data_with_times_is_named_once(tmp_path: Path, scene_cache: Path) -> None:
    said = said_of_times(tmp_path, StillField(), timed_scene(scene_cache))
    assert said == [
        "the training views have times, but StillField does not want any: the scene is taken for static",
    ]
    assert said_of_times(tmp_path, StillField(), tiny_scene(scene_cache)) == []


def test_a_field_that_wants_times_is_refused_where_there_are_none(tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(ValueError, match="data: TimedField wants times, but these training views have none"):
        trainer(tmp_path, max_steps=3).fit(tiny_module(field=TimedField()), tiny_scene(scene_cache))


def test_what_no_field_may_want_is_refused_by_name() -> None:
    class Strange(PlainField):
        wants = ("weather",)

    with pytest.raises(ValueError, match=r"Strange\.wants: expected some of times, cameras, footprints, got 'weather'"):
        Strange()
