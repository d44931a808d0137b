"""Fits with estimators of a fixed count, with and without an earlier round: what they learn, resume and replay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.callbacks import EMAWeights, OccupancyGridUpdate, PSNRLogger, RayBudget
from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import Hierarchical, Proposal, Uniform
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.losses import Distortion, Interlevel, Photometric, RoundPhotometric
from lightning_nerf.modules import InstantNGP
from tests.executors.fits import PlainField, adam, assert_equal, fit, halve, plain_module
from tests.losses.test_losses import Outputs
from tests.modules.test_kills import same
from tests.scenes import tiny_module, tiny_scene, trainer


def uniform(**options: Any) -> InstantNGP:
    return plain_module(estimator=Uniform(16), **options)


def one_field(**options: Any) -> InstantNGP:
    return plain_module(estimator=Hierarchical(8, 12), losses=[Photometric(), RoundPhotometric()], **options)


def two_fields(**options: Any) -> InstantNGP:
    torch.manual_seed(1)
    estimator = Hierarchical(8, 12, field=PlainField(), spacing="disparity")
    return plain_module(estimator=estimator, losses=[Photometric(), RoundPhotometric(weight=0.5)], **options)


def proposals(learn_every: int = 1, **options: Any) -> InstantNGP:
    torch.manual_seed(1)
    estimator = Proposal([PlainField(), PlainField()], (12, 10), 8, anneal_steps=4, learn_every=learn_every)
    return plain_module(estimator=estimator, losses=[Photometric(), Interlevel(), Distortion(0.01)], **options)


def resting_proposals(**options: Any) -> InstantNGP:
    return proposals(3, **options)


METHODS: dict[str, Callable[..., InstantNGP]] = {
    "uniform": uniform,
    "one field": one_field,
    "two fields": two_fields,
    "proposals": proposals,
    "resting proposals": resting_proposals,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3, "max_steps": 10}], ids=["plain", "accumulate 3"])
def test_a_captured_fit_equals_an_eager_one_to_the_bit(
    tmp_path: Path, scene_cache: Path, accelerator: str, method: str, options: dict[str, Any]
) -> None:
    make = METHODS[method]
    eager, expected, _ = fit(tmp_path, scene_cache, accelerator, "auto", module=make(), **options)
    graph, seen, run = fit(tmp_path, scene_cache, accelerator, module=make(), **options)
    assert_equal(eager, graph)
    assert [float(loss) for loss in expected.losses] == [float(loss) for loss in seen.losses]
    assert sum(seen.replayed) > len(seen.replayed) / 3
    assert seen.replayed[-1]
    assert set(seen.n_rays) == {
        min(1024, 2048 // graph.estimator.fixed_count)
    }  # of max_rays = 1024 the others are inactive
    assert (seen.without_gradient == 0) == (method != "resting proposals")
    assert not any(isinstance(c, (OccupancyGridUpdate, RayBudget)) for c in run.callbacks)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_fit_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, scene_cache: Path, method: str) -> None:
    make = METHODS[method]
    whole, _, _ = fit(tmp_path, scene_cache, "cpu", "auto", module=make(), max_steps=12)
    _, _, half = fit(tmp_path, scene_cache, "cpu", "auto", module=make(), max_steps=7)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, run = fit(
        tmp_path, scene_cache, "cpu", "auto", module=make(), max_steps=12, ckpt_path=tmp_path / "half.ckpt"
    )
    same(dict(whole.state_dict()), dict(resumed.state_dict()), "state_dict")
    run.save_checkpoint(tmp_path / "whole.ckpt")
    options = {"optimizer": adam, "lr_scheduler": halve, "allow": ["tests"]}
    loaded = InstantNGP.load_from_checkpoint(tmp_path / "whole.ckpt", **options)
    cameras = tiny_scene(scene_cache).scene("test").cameras.bounded(2.0, 6.0)
    for part, other in zip(*(m.render_camera(cameras, 1, torch.ones(3)) for m in (whole, loaded)), strict=True):
        same(part, other, "render")


@pytest.mark.slow
def test_ranks_train_one_field_on_samples_of_their_own(tmp_path: Path, scene_cache: Path) -> None:
    tiny_scene(scene_cache).setup("fit")  # rendered once, not by both
    root = Path(__file__).parent.parent.parent
    subprocess.run(
        [sys.executable, "-m", "tests.executors.rounds_ddp", str(scene_cache), str(tmp_path)],
        check=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    for method in METHODS:
        first, second = (torch.load(tmp_path / f"{method}.{rank}.pt") for rank in range(2))
        for name, value in first["state"].items():
            assert name == "key" or torch.equal(value, second["state"][name]), name
        assert len(first["places"]) == len(second["places"]) == 5
        for a, b in zip(first["places"], second["places"], strict=True):
            assert (a != b).float().mean() > 0.9


def test_coarse_and_fine_learn(tmp_path: Path, scene_cache: Path) -> None:
    """A fine field, and a plain coarse one that says where to look."""
    torch.manual_seed(0)
    module = tiny_module(
        field=InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=32, width=16),
        estimator=Hierarchical(12, 12, field=PlainField()),
        losses=[Photometric(), RoundPhotometric()],
        samples_per_step=6144,
    )
    scene, outputs = tiny_scene(scene_cache, n_train=24), Outputs()
    run = trainer(tmp_path, max_steps=100, callbacks=[PSNRLogger(ssim=False), EMAWeights(), outputs])
    run.fit(module, scene)
    (score,) = run.test(module, scene, verbose=False)
    test, white = scene.scene("test"), torch.ones(3)
    blank = sum(float(-10 * (test.truth(i, white) - white).square().mean().log10()) for i in range(2)) / 2
    assert score["test/psnr"] > blank + 8
    for name in ("photometric", "coarse_photometric"):
        values = [float(step[name]) for step in outputs.steps]
        assert sum(values[-5:]) < 0.7 * sum(values[:5]), name


def test_a_ray_with_more_samples_than_a_step_takes_is_refused(tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(BadArgument, match=r"samples_per_step: expected at least the 3000 of a ray of Uniform, got 2048"):
        fit(tmp_path, scene_cache, "cpu", "auto", module=plain_module(estimator=Uniform(3000)))
