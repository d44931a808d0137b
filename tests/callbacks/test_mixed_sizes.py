"""A run on pictures of several sizes, from the draw to the files that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import lightning as L
import pytest
import torch

from lightning_nerf.callbacks import ImageLogger, PSNRLogger, QualityMarks, RunResults, Turntable
from lightning_nerf.callbacks.image_logger import GAP, view_picture
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.cameras import Cameras
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import Images, NeRFDataModule, Scene, Source
from lightning_nerf.scene_box import SceneBox
from tests.ops.harness import rand
from tests.scenes import tiny_module, trainer

SIZES = {"train": [(24, 16), (16, 24), (20, 20)], "val": [], "test": [(16, 20), (24, 16)]}
BOX = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))


class MixedSource(Source):
    """Noise, seen from all around by cameras with bounds of their own."""

    def read(self, split: str) -> Scene:
        sizes = SIZES[split]
        v, size = len(sizes), torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        intrinsics = torch.cat([torch.full((v, 2), 30.0), size / 2], -1)
        bounds = torch.tensor([[1.0, 6.0], [2.0, 5.0], [1.5, 7.0]])[:v]
        cameras = Cameras(spiral_poses(v, 3.0, (0.0, 60.0)), intrinsics, size, bounds)
        pictures = [(rand(h, w, 4, seed=i) * 256).byte() for i, (w, h) in enumerate(sizes)]
        return Scene(cameras, Images.from_pictures(pictures), [f"{split}_{i}" for i in range(v)], BOX)


def test_a_run_on_pictures_of_several_sizes(tmp_path: Path) -> None:
    marks, data, module = QualityMarks([1e-9], views_every=1), NeRFDataModule(MixedSource()), tiny_module()
    callbacks: list[L.Callback] = [marks, RunResults(), PSNRLogger(), ImageLogger(), Turntable(n_frames=2)]
    run = trainer(tmp_path, max_steps=4, callbacks=callbacks)
    run.fit(module, data)
    run.test(module, data, verbose=False)

    scene, background = data.scene("test"), module.eval_background()
    for i, (width, height) in enumerate(SIZES["test"]):
        render = module.render_view("test", i)
        assert render.rgb.shape == (height, width, 3)
        assert render.depth.shape == (height, width)
        picture = imageio.imread(run_folder(run) / f"images/test_test_{i}.png")
        seen = view_picture(render, scene.truth(i, background), module.estimator).numpy()
        assert (picture == seen).all()
        assert seen.shape[0] > height
        assert seen.shape[1] >= 4 * width + height + 4 * GAP
    scores = [float(psnr(module.render_view("test", i).rgb, scene.truth(i, background))) for i in range(2)]
    results = json.loads((run_folder(run) / "results.json").read_text())
    assert list(results["psnr_per_image"]) == ["test_0", "test_1"]
    torch.testing.assert_close(list(results["psnr_per_image"].values()), scores, atol=1e-4, rtol=0)
    assert results["psnr_of_mean_image"] is None  # pictures of several sizes have no mean
    assert [row["mark"] for row in marks.scores] == [1e-9, None]
    torch.testing.assert_close(marks.scores[-1]["psnr"], sum(scores) / 2, atol=1e-4, rtol=0)


def test_a_camera_is_rendered_with_bounds_and_size_of_its_own(tmp_path: Path) -> None:
    """Whichever camera of a set it is: the picture is that of the camera alone."""
    data, module = NeRFDataModule(MixedSource(), near=0.5, far=9.0), tiny_module()
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    cameras = data.scene("train").cameras
    for i in range(3):
        alone = module.render_camera(cameras.chosen([i]), 0)
        whole = module.render_camera(cameras, i)
        for name in ("rgb", "opacity", "depth", "n_samples"):
            assert torch.equal(getattr(alone, name), getattr(whole, name))
    unbounded = cameras._replace(bounds=None)
    given = module.render_camera(cameras.bounded(0.5, 9.0), 1)
    assert torch.equal(module.render_camera(unbounded, 1).depth, given.depth)  # the data module's
    for index in (-1, 3):
        with pytest.raises(IndexError):
            module.render_camera(cameras, index)
