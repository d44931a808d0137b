"""What the update of a grid asks of an estimator of a user's own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.callbacks import OccupancyGridUpdate
from lightning_nerf.capabilities import states
from lightning_nerf.estimators import Estimator, OccupancyGrid, Uniform
from lightning_nerf.ops.random import make_key
from tests.scenes import tiny_module, tiny_scene, trainer


class Silent(Uniform):
    """Learns, and states nothing."""

    needs_update = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[dict[str, Any]] = []

    def update(self, density_fn: Any, **options: Any) -> None:
        self.calls.append(options)


class Stating(Silent):
    """States what an OccupancyGrid does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.marked: list[Tensor] = []

    @states("captured", "shared")
    def update(self, density_fn: Any, **options: Any) -> None:
        super().update(density_fn, **options)

    def mark_invisible_cells(self, c2w: Tensor, *args: Any, near: Tensor) -> None:
        self.marked.append(c2w)


class Overriding(Stating):
    """States nothing of its own update."""

    def update(self, density_fn: Any, **options: Any) -> None:
        super().update(density_fn, **options)


class Choosing(Stating):
    """Its choice of cells is not for a graph."""

    def cells(self, step: int, key: Tensor) -> Tensor:
        return torch.arange(3)


class OwnGrid(OccupancyGrid):
    """Its choice of cells is not for a graph."""

    def cells(self, step: int, key: Tensor) -> Tensor:
        return super().cells(step, key)


class Executor:
    """Notes what it runs."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, name: str, fn: Any, *args: Any) -> None:
        self.names.append(name)
        fn(*args)


def update(estimator: Estimator, monkeypatch: pytest.MonkeyPatch, world_size: int = 1, step: int = 16) -> list[str]:
    """Names of what one update gave to the strategy's executor."""
    monkeypatch.setattr("lightning_nerf.callbacks.occupancy.lightning_names.batches_done", lambda trainer: step)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *args: None)
    field = SimpleNamespace(wants=(), density=lambda positions: positions[:, 0])
    module = SimpleNamespace(
        estimator=estimator, field=field, key=make_key(0), executor=Executor(), name_step=lambda step, rank: None
    )
    plugin = SimpleNamespace(forward_context=nullcontext)
    run: Any = SimpleNamespace(world_size=world_size, global_rank=world_size - 1, precision_plugin=plugin)
    OccupancyGridUpdate().on_train_batch_start(run, module, None, step)  # type: ignore[arg-type]
    return module.executor.names


@pytest.mark.parametrize(
    ("kind", "captured", "shared"),
    [(Silent, False, False), (Stating, True, True), (Overriding, False, False), (Choosing, False, True)],
)
def test_an_estimators_statements_say_how_it_is_updated(
    monkeypatch: pytest.MonkeyPatch, kind: type[Silent], captured: bool, shared: bool
) -> None:
    assert bool(update(alone := kind(4), monkeypatch)) == captured
    assert "share" not in alone.calls[0]
    assert update(one_of_two := kind(4), monkeypatch, world_size=2) == []
    assert one_of_two.calls[0].get("share") == ((1, 2) if shared else None)


@pytest.mark.parametrize(("kind", "captured"), [(OccupancyGrid, True), (OwnGrid, False)])
def test_a_grid_whose_choice_of_cells_is_overridden_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, kind: type[OccupancyGrid], captured: bool
) -> None:
    grid = kind(resolution=8).bind([-1, -1, -1, 1, 1, 1])
    expected = ["the occupancy grid's update (all cells)"] if captured else []
    assert update(grid, monkeypatch) == expected
    assert update(grid, monkeypatch, step=2000) == [name.replace("all", "chosen") for name in expected]


@pytest.mark.parametrize("mark", [True, False])
def test_an_estimator_that_can_is_told_the_training_cameras_before_a_fit(
    tmp_path: Path, scene_cache: Path, mark: bool
) -> None:
    estimator, scene = Stating(4), tiny_scene(scene_cache)
    callback = OccupancyGridUpdate(mark_invisible=mark)
    trainer(tmp_path, max_steps=1, callbacks=[callback]).fit(tiny_module(estimator=estimator), scene)
    assert len(estimator.marked) == mark
    if mark:
        assert torch.equal(estimator.marked[0], scene.scene("train").cameras.c2w)
    assert len(estimator.calls) == 1
