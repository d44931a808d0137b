"""Torch's default dtype and ``.double()`` of an estimator change no bit of grids, fields and fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf import Frequency, InstantNGPField, OccupancyGrid, Rays, SceneBox
from lightning_nerf.callbacks import PSNRLogger
from tests.executors.fits import PlainField
from tests.nerfacc.test_dtypes import OTHERS, default_dtype, same
from tests.scenes import tiny_module, tiny_scene, trainer

BOX = SceneBox(torch.tensor([[-1.1, -1.0, -1.0], [1.0, 1.0, 1.0]]))
ORIGINS, DIRECTIONS = torch.tensor([[0.1, 0.0, -2.0], [0.0, 0.2, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]]).repeat(2, 1)
POSE = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [0.9]])], 1)[None]
INTRINSICS = torch.tensor([8.0, 8.0, 4.0, 4.0])


def used(grid: OccupancyGrid) -> list[Tensor]:
    """The samples of a grid in use, and its state."""
    torch.manual_seed(0)
    grid.bind(BOX)
    grid.mark_invisible_cells(POSE, INTRINSICS, 8, 8)
    rays = Rays(ORIGINS, DIRECTIONS, torch.zeros_like(ORIGINS[:, 0]), torch.full_like(ORIGINS[:, 0], 9.0))
    found = [grid.place(rays).samples.t_starts]
    for step in (0, 300):
        grid.update(lambda x: x.norm(dim=-1), step=step)
        for limits in ({}, {"t_min": torch.full_like(ORIGINS[:, 0], 0.5)}):
            found += grid.sampling(ORIGINS, DIRECTIONS, lambda t, *_: torch.ones_like(t), stratified=True, **limits)
    assert 0 < int((grid.occs < 0).sum()) < grid.occs.numel()
    assert len(found[-1]) > 0
    return [*found, *grid.buffers()]


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_grid_does_not_depend_on_the_default(dtype: torch.dtype, is_new: bool) -> None:
    """Neither where it is made nor where it is used."""
    expected, before = used(OccupancyGrid(8, n_levels=2)), OccupancyGrid(8, n_levels=2)
    with default_dtype(dtype):
        found = used(OccupancyGrid(8, n_levels=2) if is_new else before)
    same(found, expected)


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_a_grid_keeps_its_float_type(convert: Callable[[nn.Module], nn.Module]) -> None:
    expected, grid = used(OccupancyGrid(8)), OccupancyGrid(8)
    holder = nn.ModuleList([grid])
    convert(holder)
    same(used(grid), expected)
    convert(holder)
    same(list(grid.buffers()), expected[-len(list(grid.buffers())) :])
    assert grid.to("meta").occs.device.type == "meta"


@pytest.mark.parametrize("dtype", OTHERS)
def test_fields_do_not_depend_on_the_default(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        field, plain, frequency = InstantNGPField(n_levels=2, log2_table_size=8, width=8), PlainField(), Frequency(4)
    for each in (field, plain):
        each.bind(BOX)
        assert each.aabb.dtype is each.affine.dtype is torch.float32
    assert {p.dtype for p in field.parameters()} == {torch.float32}
    expected = [*field(ORIGINS, DIRECTIONS)[:2], Frequency(4)(ORIGINS)]
    with default_dtype(dtype):
        same([*field(ORIGINS, DIRECTIONS)[:2], frequency(ORIGINS)], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_fit_under_another_default_is_the_same_fit(dtype: torch.dtype, tmp_path: Path, scene_cache: Path) -> None:
    """But for the fresh weights, which torch's initializers draw in the default dtype."""
    torch.manual_seed(0)
    start, states = tiny_module().state_dict(), []
    for default in (torch.float32, dtype):
        with default_dtype(default):
            module, scene = tiny_module(), tiny_scene(scene_cache)
            module.load_state_dict(start)
            run = trainer(tmp_path, max_steps=4, callbacks=[PSNRLogger()])
            run.fit(module, scene)
            (scores,) = run.test(module, scene, verbose=False)
            assert scores["test/psnr"] > 0  # Lightning rounds it to the default dtype
            states.append([*module.state_dict().values(), module.render_view("test", 0).rgb])
    same(states[1], states[0])
