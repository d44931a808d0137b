from __future__ import annotations

import torch

from lightning_nerf.cameras import Cameras, image_rays
from lightning_nerf.cameras.poses import look_at
from lightning_nerf.ops.lenses import OPENCV
from lightning_nerf.scene_box import SceneBox
from tests.scenes import tiny_module


def test_a_picture_shows_the_background_where_its_lens_sees_nothing() -> None:
    cameras = Cameras.of_one_size(look_at(torch.tensor([[0.0, -3, 1]])), torch.tensor([20.0, 20, 12, 8]), 24, 16)
    folding = [-3.0, 0, 0, 0, 0, 0, 0, 0]  # seen within 2/9 of the middle: 4.4 pixels
    cameras = cameras.bounded(0.5, 6.0)._replace(lens_model=torch.tensor([OPENCV]), lens=torch.tensor([folding]))
    module = tiny_module()
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    module.field.bind(box)
    module.estimator.bind(box)
    background = torch.tensor([0.25, 0.5, 0.75])
    render = module.render_camera(cameras, 0, background)
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    seen = torch.hypot(x - 12, y - 8) < 20 * 2 / 9
    assert torch.equal((image_rays(cameras, 0).far > 0).view(16, 24), seen)
    assert bool((render.rgb[~seen] == background).all())
    assert bool((render.opacity[~seen] == 0).all())
    assert bool((render.n_samples[seen] > 0).all())
