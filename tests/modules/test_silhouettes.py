"""Whatever the object's color, the recipe learns it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.callbacks import EMAWeights, PSNRLogger
from lightning_nerf.callbacks.results import _mean_image_psnr
from lightning_nerf.data import NeRFDataModule, Scene
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.optim import FusedAdam
from tests.scenes import trainer


class Recolored(SyntheticSource):
    """The synthetic scene with other colors on the same shapes."""

    def __init__(self, recolor: Callable[[Tensor], Tensor], cache_dir: Path) -> None:
        super().__init__(64, n_train=24, n_test=2, n_val=0, cache_dir=cache_dir)
        self.recolor = recolor

    def read(self, split: str) -> Scene:
        scene = super().read(split)
        colors = scene.images.colors.clone()
        colors[:, :3] = self.recolor(colors[:, :3].float()).round().to(torch.uint8)
        return scene._replace(images=scene.images._replace(colors=colors))


def module_of_the_synthetic_recipe() -> InstantNGP:
    """As ``synthetic/instant_ngp`` has it."""
    field = InstantNGPField(n_levels=8, n_features=2, log2_table_size=16, base_resolution=16, max_resolution=256)
    estimator = OccupancyGrid(resolution=64, step_size=0.02, threshold=0.05, alpha_threshold=0.01, early_stop_eps=0.001)
    optimizer = partial(FusedAdam, lr=0.02, ema_decay=0.9998, ema_share=0.15)
    budget = {"samples_per_step": 16384, "max_rays": 10240, "initial_rays": 256, "random_background_steps": 200}
    return InstantNGP(field, estimator, optimizer=optimizer, seed=0, **budget)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recolor", "floor", "above_mean"),
    [
        pytest.param(lambda c: 0.4 * c, 30.0, 3.0, id="dark"),
        pytest.param(lambda c: 255 - (255 - c) * 0.2, 22.0, 3.0, id="light"),
    ],
)
def test_dark_and_light_objects_do_not_become_silhouettes(
    tmp_path: Path, scene_cache: Path, recolor: Callable[[Tensor], Tensor], floor: float, above_mean: float
) -> None:
    torch.manual_seed(0)
    module = module_of_the_synthetic_recipe()
    data = NeRFDataModule(Recolored(recolor, scene_cache), near=2.0, far=6.0, background="black")
    fit = trainer(tmp_path, max_steps=200, callbacks=[EMAWeights(), PSNRLogger(ssim=False)])
    fit.fit(module, data)
    score, mean = fit.test(module, data, verbose=False)[0]["test/psnr"], _mean_image_psnr(module)
    assert mean is not None
    assert score > max(floor, mean + above_mean)
