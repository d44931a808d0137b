"""The landscape: opaque everywhere, the same for the same seed, and larger the farther away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_nerf import SyntheticUnboundedScene
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.open_solids import GROUND, SKY, open_solids
from lightning_nerf.data.sources import SyntheticUnboundedSource


def test_all_pixels_are_covered_and_repeat(tmp_path: Path) -> None:
    data = [
        SyntheticUnboundedScene(resolution=12, n_train=3, n_test=2, n_val=1, cache_dir=tmp_path / name) for name in "ab"
    ]
    scenes = [each.scene("train") for each in data]
    assert torch.equal(scenes[0].images.colors, scenes[1].images.colors)
    assert (scenes[0].images.colors[:, 3] == 255).all()
    assert data[0].scene_box.contraction == "l2"
    assert data[0].near == 0.4


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_cameras_stand_between_the_solids_and_all_else(seed: int) -> None:
    source = SyntheticUnboundedSource(resolution=8, n_train=50, seed=seed)
    scene = AnalyticScene(others=open_solids(seed))
    places = np.stack([view.c2w[:, 3] for split in ("train", "val", "test") for view in source.views(split)], 1)
    assert places.shape == (3, 62)
    assert scene.distance(places.astype(np.float32)).min() > 0.3  # the data's near is 0.4 along a ray
    assert len(np.unique(places.round(4), axis=1).T) == 62
    corners = np.array(source.aabb)
    assert ((corners[0] > places.T) | (corners[1] < places.T)).any(1).all()


def test_rays_end_where_the_scene_says() -> None:
    """Straight down to the ground, straight up to the sky: distances are exact there."""
    scene = AnalyticScene(others=open_solids(0))
    away = np.array([[3.0], [0.0], [5.0]], np.float32)
    assert float(scene.distance(away)[0]) <= 5.0 - GROUND + 1e-5
    above = np.array([[0.0], [0.0], [50.0]], np.float32)
    assert float(scene.distance(above)[0]) == pytest.approx(SKY - 50, abs=1e-3)


def test_the_sky_shines_by_itself_and_throws_no_shadow() -> None:
    """With shadows of the sky and the ground, no surface would see the light."""
    solids = open_solids(0)
    assert [solid.casts for solid in solids[-2:]] == [False, False]
    c2w = np.array([[1, 0, 0, 0], [0, 0, -1, -3.0], [0, 1, 0, 0.3]], np.float32)
    lit = AnalyticScene(others=solids).render(c2w, 1.0, 24)
    dark = AnalyticScene(others=[solid._replace(casts=True) for solid in solids]).render(c2w, 1.0, 24)
    assert lit[..., :3].mean() > dark[..., :3].mean() + 5
    assert np.array_equal(lit[0, :3], dark[0, :3])  # the sky, beside all things
