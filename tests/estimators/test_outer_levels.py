"""The levels of a grid beyond the scene's box, and which fields can fill them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras
from lightning_nerf.cameras.cameras import image_rays
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import Images, NeRFDataModule, Scene, Source
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.ops.random import make_key
from lightning_nerf.scene_box import SceneBox
from tests.scenes import tiny_module, trainer

SIDE, N_VIEWS = 20, 12
BOX = [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]
BALLS = [  # middle, radius, color: one in the box, one in the second level, one in the third
    ((-0.15, 0.0, 0.0), 0.3, (0.9, 0.2, 0.1)),
    ((0.75, 0.0, 0.0), 0.4, (0.1, 0.9, 0.2)),
    ((-1.1, 1.1, 0.0), 0.6, (0.1, 0.2, 0.9)),
]


class Balls(Source):
    """Three balls before nothing, by formulas; two of them lie outside of the box."""

    def read(self, split: str) -> Scene:
        n = N_VIEWS if split == "train" else 1
        c2w = spiral_poses(n, 4.0, (-20.0, 70.0), 0.0 if split == "train" else 0.5)
        cameras = Cameras.of_one_size(c2w, torch.tensor([20.0, 20.0, SIDE / 2, SIDE / 2]), SIDE, SIDE, near=0.5, far=8.0)
        pictures = [self._picture(cameras, i) for i in range(n)]
        return Scene(cameras, Images.from_pictures(pictures), [f"{i}" for i in range(n)], SceneBox(torch.tensor(BOX)))

    def _picture(self, cameras: Cameras, index: int) -> Tensor:
        rays = image_rays(cameras, index)
        nearest = torch.full((SIDE * SIDE,), torch.inf)
        rgba = torch.zeros(SIDE * SIDE, 4)
        for middle, radius, color in BALLS:
            to_middle = torch.tensor(middle) - rays.origins
            along = (to_middle * rays.directions).sum(-1)
            inside = radius**2 - to_middle.square().sum(-1) + along.square()
            t = along - inside.clamp(min=0).sqrt()
            seen = (inside > 0) & (t < nearest)
            nearest = torch.where(seen, t, nearest)
            rgba = torch.where(seen[:, None], torch.tensor([*color, 1.0]), rgba)
        return (255 * rgba).round().to(torch.uint8).view(SIDE, SIDE, 4)


def data(contraction: str) -> NeRFDataModule:
    return NeRFDataModule(Balls(), near=0.5, far=8.0, contraction=contraction)


def module(n_levels: int = 3) -> InstantNGP:
    torch.manual_seed(0)
    # Thin for all of the space that is seen, of which the box is a small part.
    thin = {"density_bias": -1 - math.log(3)}
    field = InstantNGPField(n_levels=4, log2_table_size=12, base_resolution=8, max_resolution=64, width=16, **thin)
    # Fog thins out before the outer balls show: thresholds that drop it would leave nothing to learn them from.
    young = {"threshold": 1e-6, "alpha_threshold": 0.0, "decay": 0.5}
    grid = OccupancyGrid(resolution=8, n_levels=n_levels, warmup_steps=10**6, step_size=0.1, **young)
    return tiny_module(field=field, estimator=grid, samples_per_step=16384, max_rays=1024)


def cells_within(level: int, middle: tuple[float, float, float], radius: float) -> Tensor:
    """[8, 8, 8]: cells of a level whose middle lies in a ball."""
    edge = 0.5 * 2**level
    middles = torch.linspace(-edge, edge, 9)[:-1] + edge / 8
    grid = torch.stack(torch.meshgrid(middles, middles, middles, indexing="ij"), -1)
    return (grid - torch.tensor(middle)).norm(dim=-1) < radius


def outside_of_inner(level: int) -> Tensor:
    """[8, 8, 8]: cells of a level that no smaller level covers."""
    shell = torch.ones(8, 8, 8, dtype=torch.bool)
    if level > 0:
        shell[2:6, 2:6, 2:6] = False
    return shell


@pytest.mark.parametrize("contraction", ["l2", pytest.param("linf", marks=pytest.mark.slow)])
def test_a_contracted_field_fills_the_outer_levels(tmp_path: Path, contraction: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="n_levels")
        trained = module()
        trainer(tmp_path, max_steps=200).fit(trained, data(contraction))
    grid = trained.estimator
    assert isinstance(grid, OccupancyGrid)
    grid.threshold = 0.05
    for step in range(6):
        grid.update(trained.field.density, step=step, key=make_key(0, step=step))
    occs = grid.occs.view(3, 8, 8, 8)
    assert grid.binaries[0][cells_within(0, *BALLS[0][:2])].any()
    for level, (middle, radius, _) in list(enumerate(BALLS))[1:]:
        here, shell = cells_within(level, middle, radius), outside_of_inner(level)
        assert (here & shell).sum() >= 3
        assert grid.binaries[level][here & shell].float().mean() > 0.7, level
        assert occs[level][here & shell].mean() > 4 * occs[level][shell & ~here].clamp(min=0).mean(), level
    assert (grid.binaries.flatten(1).float().mean(1) < 0.3).all()
    render = trained.render_view("test", 0)
    truth = trained.datamodule.scene("test").truth(0, trained.eval_background())
    assert (render.rgb - truth).square().mean() < 0.5 * (1 - truth).square().mean()


def test_a_field_that_ends_at_its_box_leaves_them_empty_and_is_named(tmp_path: Path) -> None:
    trained = module()
    with pytest.warns(UserWarning, match="n_levels: of 3 levels only the first can be filled, because InstantNGPField"):
        trainer(tmp_path, max_steps=40).fit(trained, data("none"))
    grid = trained.estimator
    assert isinstance(grid, OccupancyGrid)
    for level in (1, 2):
        assert not grid.binaries[level][outside_of_inner(level)].any()
    assert grid.binaries[0].any()


def test_one_level_is_named_by_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="n_levels")
        trainer(tmp_path, max_steps=2).fit(module(n_levels=1), data("none"))
