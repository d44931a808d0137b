"""Cameras that are refined, in captured steps."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_nerf.cameras import CameraRefinement
from lightning_nerf.data import NeRFDataModule, Scene
from lightning_nerf.data.sources import SyntheticSource
from tests.executors.fits import fit, plain_module


class ThroughLenses(SyntheticSource):
    """The synthetic scene as if its pictures were taken through a lens: rays take the longest way there is."""

    def read(self, split: str) -> Scene:
        scene = super().read(split)
        n = scene.n_views
        lens = torch.tensor([0.05, -0.02, 0, 0, 0, 0, 0, 0]).expand(n, 8).contiguous()
        return scene._replace(cameras=scene.cameras._replace(lens_model=torch.ones(n, dtype=torch.int64), lens=lens))


def test_a_captured_step_refines_as_an_eager_one_does(accelerator: str, tmp_path: Path, scene_cache: Path) -> None:
    for source in (SyntheticSource, ThroughLenses):
        learned = []
        for strategy in ("auto", "nerf_cuda_graph"):
            scene = NeRFDataModule(source(24, n_train=6, n_test=2, cache_dir=str(scene_cache)), near=2.0, far=6.0)
            module = plain_module(cameras=CameraRefinement("per_camera", rate_factor=2**-4))  # a rate that float32 holds
            module, seen, _ = fit(tmp_path, scene_cache, accelerator, strategy, module, scene=scene)
            assert any(seen.replayed) == (strategy == "nerf_cuda_graph")
            assert module.cameras is not None
            learned.append((module.cameras.poses.detach().cpu(), module.cameras.log_focal.detach().cpu()))
        (poses, focal), (captured_poses, captured_focal) = learned
        assert float(poses.abs().min()) > 0
        if accelerator == "cpu":
            assert torch.equal(captured_poses, poses)
            assert torch.equal(captured_focal, focal)
        else:  # a view's gradient is a sum of its rays' in any order
            torch.testing.assert_close(captured_poses, poses, rtol=0, atol=0.05 * float(poses.abs().max()))
            torch.testing.assert_close(captured_focal, focal, rtol=0, atol=0.05 * float(focal.abs().max()))
