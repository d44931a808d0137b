"""Fits that learn the cameras of their training views, and the file that they leave."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import CameraRefinement, Cameras
from lightning_nerf.cameras.rotations import rotation_excess
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import CaptureData, NeRFDataModule, Scene
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.estimators import Hierarchical, OccupancyGrid, Proposal, Uniform
from lightning_nerf.fields import InstantNGPField, ProposalField, VanillaField
from lightning_nerf.losses import Distortion, Interlevel, Photometric
from lightning_nerf.modules import InstantNGP, NeRFModule
from tests.data.captures import write_transforms
from tests.scenes import tiny_module, trainer

DISTANCE = 4.0  # of the synthetic scene's cameras
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")


def units(n: int, seed: int) -> Tensor:
    vectors = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


class OffSource(SyntheticSource):
    """The synthetic scene, whose training cameras are 1.5 degrees, 1.5 % of their distance and 3 % of focal length off."""

    def read(self, split: str) -> Scene:
        scene = super().read(split)
        if split != "train":
            return scene
        c2w, intrinsics = scene.cameras.c2w.clone(), scene.cameras.intrinsics.clone()
        c2w[:, :, :3] += rotation_excess(math.radians(1.5) * units(len(c2w), 0)) @ c2w[:, :, :3]
        c2w[:, :, 3] += 0.015 * DISTANCE * units(len(c2w), 1)
        intrinsics[:, :2] *= 1.03
        return scene._replace(cameras=scene.cameras._replace(c2w=c2w, intrinsics=intrinsics))


def off_scene(cache: Path, resolution: int = 24, n_train: int = 6) -> NeRFDataModule:
    source = OffSource(resolution, n_train=n_train, n_test=2, n_val=0, cache_dir=str(cache))
    return NeRFDataModule(source, near=2.0, far=6.0)


def errors(cameras: Cameras, truth: Cameras) -> tuple[float, float]:
    """Mean angle in degrees and mean distance between poses, after the similarity that fits them best."""
    ours, theirs = cameras.c2w.double(), truth.c2w.double()
    left, _, right = torch.linalg.svd((theirs[:, :, :3] @ ours[:, :, :3].mT).sum(0))
    rotation = left @ right
    a, b = ours[:, :, 3] @ rotation.mT, theirs[:, :, 3]
    a, b = a - a.mean(0), b - b.mean(0)
    scale = (a * b).sum() / (a * a).sum()
    between = rotation @ ours[:, :, :3] @ theirs[:, :, :3].mT
    cosine = (between.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    return float(cosine.clamp(-1, 1).acos().rad2deg().mean()), float((scale * a - b).norm(dim=-1).mean())


def run(folder: Path, **options: Any) -> L.Trainer:
    return trainer(folder, **options)


def test_cameras_that_are_a_little_off_are_found(tmp_path: Path, scene_cache: Path) -> None:
    torch.manual_seed(0)
    module = InstantNGP(
        InstantNGPField(n_levels=4, log2_table_size=13, base_resolution=8, max_resolution=32),
        OccupancyGrid(resolution=32, step_size=0.05, warmup_steps=64),
        samples_per_step=2**14,
        max_rays=1024,
        initial_rays=512,
        random_background_steps=100,
        seed=1,
        cameras=CameraRefinement(rate_factor=0.2),
    )
    data = off_scene(scene_cache, 48, 24)
    given = data.scene("train").cameras
    truth = SyntheticSource.read(data.source, "train").cameras  # type: ignore[arg-type]
    run(tmp_path, max_steps=400).fit(module, data)
    found = module.view_cameras("train", data)
    (turned, moved), (turned_before, moved_before) = errors(found, truth), errors(given, truth)
    focal, focal_before = (float(c.intrinsics[0, 0] / truth.intrinsics[0, 0]) - 1 for c in (found, given))
    assert turned < 0.5 * turned_before
    assert moved < 0.5 * moved_before
    assert abs(focal) < 0.75 * abs(focal_before)
    assert torch.equal(module.view_cameras("test", data).c2w, data.scene("test").cameras.c2w)


ESTIMATORS = {
    "grid": lambda: OccupancyGrid(resolution=16, warmup_steps=16, step_size=0.05),
    "uniform": lambda: Uniform(16),
    "hierarchical": lambda: Hierarchical(n_coarse=8, n_fine=8),
    "proposal": lambda: Proposal([ProposalField(max_resolution=32)], counts=[16], n_fine=8),
}
FIELDS = {
    "instant_ngp": lambda: InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=64, width=16),
    "vanilla": lambda: VanillaField(width=16, hidden_layers=2, skip=None, view_width=8),
}


@pytest.mark.parametrize(
    ("field", "estimator"),
    [("instant_ngp", name) for name in ESTIMATORS] + [("vanilla", "grid"), ("vanilla", "hierarchical")],
)
def test_every_camera_learns_through_every_part(field: str, estimator: str, tmp_path: Path, scene_cache: Path) -> None:
    losses = [Photometric(), Distortion(weight=0.01), *([Interlevel()] if estimator == "proposal" else [])]
    module = NeRFModule(
        FIELDS[field](),
        ESTIMATORS[estimator](),
        losses=losses,
        samples_per_step=4096,
        max_rays=256,
        initial_rays=128,
        seed=3,
        cameras=CameraRefinement(),
    )
    run(tmp_path, max_steps=3).fit(module, off_scene(scene_cache))
    assert module.cameras is not None
    increments = module.cameras.increments().detach()
    assert increments.shape == (6, 6)
    assert bool((increments != 0).all())
    assert bool(increments.isfinite().all())
    assert float(module.cameras.log_focal.detach()) != 0


def test_without_refinement_nothing_of_it_is_in_the_module(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module()
    fit = run(tmp_path, max_steps=1)
    fit.fit(module, off_scene(scene_cache))
    assert not [name for name in module.state_dict() if name.startswith("cameras")]
    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["field"]
    assert not list(tmp_path.rglob("transforms.json"))


def test_cameras_have_a_rate_of_their_own(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module(cameras=CameraRefinement(rate_factor=0.02))
    fit = run(tmp_path, max_steps=1)
    fit.fit(module, off_scene(scene_cache))
    rates = {group["name"]: group["lr"] for group in fit.optimizers[0].param_groups}
    assert rates["cameras"] == pytest.approx(0.02 * rates["field"])


def test_corrections_are_in_the_checkpoint(tmp_path: Path, scene_cache: Path) -> None:
    module, data = tiny_module(cameras=CameraRefinement("per_camera")), off_scene(scene_cache)
    fit = run(tmp_path, max_steps=4)
    fit.fit(module, data)
    fit.save_checkpoint(tmp_path / "it.ckpt")
    assert module.cameras is not None
    loaded = InstantNGP.load_from_checkpoint(tmp_path / "it.ckpt")
    assert isinstance(loaded.cameras, CameraRefinement)
    assert loaded.cameras.focal == "per_camera"
    refined, again = module.view_cameras("train", data), loaded.view_cameras("train", data)
    assert torch.equal(refined.c2w, again.c2w)
    assert torch.equal(refined.intrinsics, again.intrinsics)
    assert not torch.equal(refined.c2w, data.scene("train").cameras.c2w)
    # Training views are rendered with them.
    background = torch.ones(3)
    expected = module.render_camera(refined, 0, background)
    assert torch.equal(loaded.render_view("train", 0, data).rgb, expected.rgb)
    with pytest.raises(BadArgument, match=r"cameras\.poses"):
        tiny_module().on_load_checkpoint(torch.load(tmp_path / "it.ckpt", weights_only=True))


def test_a_resumed_fit_goes_on_with_its_corrections(tmp_path: Path, scene_cache: Path) -> None:
    def fitted(steps: int, folder: str, resume: Path | None = None) -> tuple[InstantNGP, L.Trainer]:
        torch.manual_seed(0)
        module = tiny_module(cameras=CameraRefinement(), lr_scheduler=constant)
        fit = run(tmp_path / folder, max_steps=steps)
        fit.fit(module, off_scene(scene_cache), ckpt_path=resume)
        return module, fit

    whole, _ = fitted(6, "whole")
    _, half = fitted(3, "half")
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fitted(6, "resumed", tmp_path / "half.ckpt")
    assert whole.cameras is not None
    assert resumed.cameras is not None
    assert torch.equal(whole.cameras.poses, resumed.cameras.poses)
    assert torch.equal(whole.cameras.log_focal, resumed.cameras.log_focal)

    class Moved(OffSource):
        def read(self, split: str) -> Scene:
            scene = super().read(split)
            return scene._replace(cameras=scene.cameras._replace(c2w=scene.cameras.c2w + 0.1))

    other = NeRFDataModule(Moved(24, n_train=6, n_test=2, n_val=0, cache_dir=str(scene_cache)), near=2.0, far=6.0)
    with pytest.raises(BadArgument, match="the checkpoint's are other poses"):
        run(tmp_path / "other", max_steps=8).fit(
            tiny_module(cameras=CameraRefinement()), other, ckpt_path=tmp_path / "half.ckpt"
        )


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def lens(content: dict[str, Any]) -> None:
    content.update({"k1": 0.05, "k2": -0.02, "camera_model": "OPENCV"})


def fisheye_and_masks(content: dict[str, Any]) -> None:
    content.update({"k1": 0.05, "k2": -0.02, "is_fisheye": True})
    for frame in content["frames"][1::2]:
        frame["mask_path"] = frame["file_path"].replace("images", "seen")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lens, {}),
        (lens, {"normalize": False}),
        (lens, {"downscale": 2}),
        (fisheye_and_masks, {}),
        (fisheye_and_masks, {"downscale": 2, "holdout_every": 3}),
    ],
)
def test_the_written_file_is_the_refined_capture(change: Any, options: dict[str, Any], tmp_path: Path) -> None:
    root = write_transforms(tmp_path / "capture", 9, change=change)
    for i in range(1, 9, 2):
        (root / "seen").mkdir(exist_ok=True)
        iio.imwrite(root / f"seen/f_{i}.png", np.where(np.arange(16) < 12, 255, 0).astype(np.uint8)[None].repeat(12, 0))
    data = CaptureData(root, **options)
    module = tiny_module(cameras=CameraRefinement(rate_factor=1.0), random_background_steps=0)
    run(tmp_path, max_steps=3).fit(module, data)
    (file,) = tmp_path.glob("lightning_logs/*/transforms.json")
    again = CaptureData(file.parent, **{**options, "holdout_every": None})
    again.load_state_dict(data.state_dict())
    expected = {"train": module.view_cameras("train", data)}
    expected |= {split: data.scene(split).cameras for split in ("val", "test")}
    for split, cameras in expected.items():
        scene, before = again.scene(split), data.scene(split)
        assert scene.names == before.names
        torch.testing.assert_close(scene.cameras.c2w, cameras.c2w, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scene.cameras.intrinsics, cameras.intrinsics, rtol=1e-6, atol=1e-6)
        assert torch.equal(scene.images.colors, before.images.colors)
        if scene.n_views:
            torch.testing.assert_close(scene.cameras.lens, cameras.lens)
            assert (scene.images.drawable is None) == (before.images.drawable is None)
            assert scene.images.drawable is None or torch.equal(scene.images.drawable, before.images.drawable)
    given = data.scene("train").cameras
    assert float((expected["train"].c2w - given.c2w).abs().max()) > 1e-3
    frames = json.loads(file.read_text())["frames"]
    assert {(frame["w"], frame["h"]) for frame in frames} == {(16, 12)}  # of the files, whatever training read
    assert all((file.parent / frame["file_path"]).is_file() for frame in frames)  # also for tools that look nowhere else
