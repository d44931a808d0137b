"""The unit in which a scene's cameras are given does not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_nerf import InstantNGP, InstantNGPField, NeRFDataModule, OccupancyGrid, Scene, SceneBox, Source
from lightning_nerf.callbacks import PSNRLogger
from lightning_nerf.data.sources import SyntheticSource
from tests.scenes import trainer


class InUnits(Source):
    """The synthetic scene with all lengths multiplied."""

    def __init__(self, scale: float, cache_dir: str) -> None:
        self.scale = scale
        self.scene = SyntheticSource(resolution=32, n_train=8, n_test=2, n_val=0, cache_dir=cache_dir)

    def prepare(self) -> None:
        self.scene.prepare()

    def box(self) -> SceneBox:
        return SceneBox(self.scene.box().aabb * self.scale)

    def read(self, split: str) -> Scene:
        scene = self.scene.read(split)
        c2w = torch.cat([scene.cameras.c2w[:, :, :3], self.scale * scene.cameras.c2w[:, :, 3:]], 2)
        return scene._replace(cameras=scene.cameras._replace(c2w=c2w), box=None)


def fitted(scale: float, steps: int, folder: Path, cache: Path, step_size: float | None) -> tuple[InstantNGP, float]:
    """A fit where only the box is named, and perhaps the step; near and far are left to follow the box."""
    torch.manual_seed(0)
    field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64, width=16)
    grid = OccupancyGrid(32, step_size=None if step_size is None else step_size * scale, warmup_steps=64)
    options = {"samples_per_step": 4096, "max_rays": 1024, "initial_rays": 64, "seed": 0}
    module = InstantNGP(field, grid, random_background_steps=20, **options)
    fit = trainer(folder, max_steps=steps, deterministic=True, callbacks=[PSNRLogger(ssim=False)])
    data = NeRFDataModule(InUnits(scale, str(cache)))
    fit.fit(module, data)
    (score,) = fit.test(module, data, verbose=False)
    return module, score["test/psnr"]


@pytest.mark.parametrize("step_size", [None, 0.04])
def test_powers_of_two_change_no_bit(step_size: float | None, tmp_path: Path, scene_cache: Path) -> None:
    whole = fitted(1.0, 30, tmp_path, scene_cache, step_size)
    for scale in (2.0**-10, 2.0**10):
        module, score = fitted(scale, 30, tmp_path, scene_cache, step_size)
        assert score == whole[1]
        for (name, ours), theirs in zip(module.field.named_parameters(), whole[0].field.parameters(), strict=True):
            assert torch.equal(ours, theirs), name
        assert torch.equal(module.estimator.binaries, whole[0].estimator.binaries)


@pytest.mark.slow
def test_any_other_unit_trains_as_well(tmp_path: Path, scene_cache: Path) -> None:
    scores = {scale: fitted(scale, 120, tmp_path, scene_cache, 0.04)[1] for scale in (1.0, 1e-3, 1e3)}
    assert min(scores.values()) > 15  # 14 by predicting the mean training image
    assert max(scores.values()) - min(scores.values()) < 0.3, scores
