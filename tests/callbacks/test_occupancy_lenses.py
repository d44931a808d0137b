"""The cells of a grid that cameras with lenses see."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lightning_nerf.callbacks import OccupancyGridUpdate
from lightning_nerf.cameras import Cameras, image_rays
from lightning_nerf.data import NeRFDataModule
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, OPENCV
from tests.scenes import tiny_module

BARREL = [-0.3, 0, 0, 0, 0, 0, 0, 0]


def with_lens(cameras: Cameras, model: int, coefficients: list[float]) -> Cameras:
    n = cameras.n_views
    return cameras._replace(lens_model=torch.full((n,), model), lens=torch.tensor([coefficients]).expand(n, 8).contiguous())


@pytest.mark.parametrize("seen", ["no lens", "a lens", "all around"])
def test_the_cells_that_a_lens_sees_stay_open(seen: str, scene_cache: Path) -> None:
    source = SyntheticSource(24, n_train=6, n_test=2, cache_dir=str(scene_cache))
    data = NeRFDataModule(source, near=2.0, far=6.0)
    scene = data.scene("train")
    cameras = scene.cameras
    if seen == "a lens":  # sees more to the sides than a pinhole of these focal lengths
        cameras = with_lens(cameras, OPENCV, BARREL)
    elif seen == "all around":
        cameras = with_lens(cameras, EQUIRECTANGULAR, [0.0] * 8)
    # Close to the object, so that the picture's border cuts through the box.
    c2w = cameras.c2w.clone()
    c2w[:, :, 3] *= 0.45
    cameras = cameras._replace(c2w=c2w, bounds=torch.tensor([[0.0, 6.0]]).expand(6, 2).contiguous()).chosen([0, 3])
    module = tiny_module()
    module.estimator.bind(data.scene_box)
    fake = SimpleNamespace(
        estimator=module.estimator,
        device=torch.device("cpu"),
        datamodule=SimpleNamespace(scene=lambda split: scene._replace(cameras=cameras)),
    )
    OccupancyGridUpdate().on_fit_start(cast(Any, None), cast(Any, fake))
    grid: Any = module.estimator
    is_open = grid.occs.view(16, 16, 16) >= 0
    low, high = data.scene_box.aabb
    for index in range(2):
        rays = image_rays(cameras, index)
        points = rays.origins[:, None] + torch.linspace(0.1, 4, 60)[:, None] * rays.directions[:, None]
        unit = (points.reshape(-1, 3) - low) / (high - low)
        x, y, z = (unit[((unit > 0) & (unit < 1)).all(-1)] * 16).long().unbind(-1)
        assert bool(is_open[x, y, z].all())
    assert bool(is_open.all()) == (seen == "all around")
