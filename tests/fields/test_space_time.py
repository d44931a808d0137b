"""A field of space and time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import DynamicNeRF, OccupancyGrid, PerturbationTV, Photometric
from lightning_nerf.fields import SpaceTimeField
from lightning_nerf.ops import hash_grid
from lightning_nerf.scene_box import SceneBox
from tests.modules.test_dynamic import ball, trainer

SMALL: dict[str, Any] = {
    "n_levels": 3,
    "n_features": 2,
    "log2_table_size": 10,
    "base_resolution": 4,
    "max_resolution": 32,
    "time_log2_table_size": 9,
    "time_max_resolution": 16,
    "time_cells": 8,
}
FIRST, LAST = 2.0, 6.0


def bound(device: str = "cpu", varied: bool = False, **options: Any) -> SpaceTimeField:
    torch.manual_seed(0)
    field = SpaceTimeField(**{**SMALL, **options})
    if varied:
        for grid in (field.space, *field.space_time):
            torch.nn.init.uniform_(grid.table, 0.5, 1.5)
    field.bind(SceneBox(torch.tensor([[-1.0, -2.0, 0.0], [3.0, 2.0, 4.0]])))
    field.bind_times(FIRST, LAST)
    return field.to(device)


def points(n: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    positions = torch.tensor([-1.0, -2.0, 0.0]) + 4 * torch.rand(n, 3, generator=g)
    return positions, torch.randn(n, 3, generator=g), FIRST + (LAST - FIRST) * torch.rand(n, generator=g)


@pytest.mark.parametrize(
    ("time_axes", "axes"), [("volumes", [[0, 1, 3], [1, 2, 3], [0, 2, 3]]), ("planes", [[0, 3], [1, 3], [2, 3]])]
)
def test_features_are_the_product_of_four_grids(time_axes: str, axes: list[list[int]]) -> None:
    field = bound(varied=True, time_axes=time_axes)
    positions, _, times = points()
    unit = (positions - torch.tensor([-1.0, -2.0, 0.0])) / 4
    place = torch.cat([unit, ((times - FIRST) / (LAST - FIRST) * 8 / 16)[:, None]], 1)
    expected = hash_grid.reference(unit, field.space.table, field.space.levels)
    for some, grid in zip(axes, field.space_time, strict=True):
        expected = expected * hash_grid.reference(place[:, some], grid.table, grid.levels)
    torch.testing.assert_close(field.encoded(positions, times), expected)


def test_a_new_field_is_the_same_at_all_times() -> None:
    field = bound()
    positions, directions, times = points()
    output = field(positions, directions, times=times)
    still = field(positions, directions, times=torch.full_like(times, FIRST))
    assert torch.equal(output.density, still.density)
    assert torch.equal(output.rgb, still.rgb)


def test_density_is_that_of_the_whole_output_and_ends_at_the_box() -> None:
    field = bound(varied=True)
    positions, directions, times = points()
    positions[0] = 9.0
    output = field(positions, directions, times=times)
    assert torch.equal(field.density(positions, times=times), output.density)
    assert output.density[0] == 0
    assert (output.density[1:] > 0).all()
    assert ((output.rgb >= 0) & (output.rgb <= 1)).all()
    assert field(positions[:0], directions[:0], times=times[:0]).rgb.shape == (0, 3)


def test_what_is_learned_depends_on_the_time() -> None:
    field = bound(varied=True)
    positions, _, times = points()
    other = field.density(positions, times=times.flip(0))
    assert ((field.density(positions, times=times) - other).abs() > 1e-6).double().mean() > 0.9


@pytest.mark.parametrize("time_axes", ["volumes", "planes"])
def test_beyond_the_times_of_the_data_it_is_as_at_their_ends(time_axes: str) -> None:
    field = bound(varied=True, time_axes=time_axes)
    positions, _, times = points()
    for given, end in [(FIRST - 3, FIRST), (-1e30, FIRST), (LAST + 0.1, LAST), (1e30, LAST), (float("inf"), LAST)]:
        beyond, at_end = (field.encoded(positions, torch.full_like(times, time)) for time in (given, end))
        assert torch.equal(beyond, at_end)
    assert not torch.equal(field.encoded(positions, torch.full_like(times, LAST - 0.1)), at_end)


def test_all_parameters_get_gradients() -> None:
    field = bound(varied=True)
    positions, directions, times = points()
    output = field(positions, directions, times=times)
    (output.density.sum() + output.rgb.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_fit_learns_what_moves_and_its_checkpoint_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    losses = [Photometric(), PerturbationTV(weight=1e-3)]
    model = DynamicNeRF(
        SpaceTimeField(**SMALL),
        OccupancyGrid(16, decay=0.99),
        losses=losses,
        samples_per_step=2048,
        max_rays=512,
        initial_rays=64,
    )
    trainer(tmp_path, max_steps=30).fit(model, ball())
    tables = [grid.table for grid in model.field.space_time]
    assert all((table != 1).any() for table in tables)
    torch.save(model.field.state_dict(), file := io.BytesIO())
    file.seek(0)
    loaded = SpaceTimeField(**SMALL)
    loaded.load_state_dict(torch.load(file))
    positions, directions, times = points(20)
    for mine, theirs in zip(
        loaded(positions, directions, times=times), model.field(positions, directions, times=times), strict=True
    ):
        if isinstance(mine, Tensor):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"time_axes": "xt"}, "time_axes: expected one of volumes, planes, got 'xt'"),
        ({"time_cells": 0}, "time_cells"),
        ({"time_cells": 17}, "time_cells"),
        ({"time_max_resolution": 3}, "time_max_resolution"),
        ({"density_bias": float("nan")}, "density_bias"),
        ({"fused": "no"}, "fused: expected bool, got str"),
        ({"n_levels": 1, "max_resolution": 4}, "time_log2_table_size, time_max_resolution: n_levels=1 has one resolution"),
        (
            {"n_levels": 64, "time_max_resolution": 2**20, "time_log2_table_size": 28},
            "time_log2_table_size, time_max_resolution: n_levels, log2_table_size: expected a table of less than 2",
        ),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SpaceTimeField(**{**SMALL, **options})
