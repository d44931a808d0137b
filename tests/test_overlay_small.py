"""`overlays/small` makes a recipe for one large GPU one that two CPU cores run in a minute or two."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_nerf.cli import build, main
from lightning_nerf.data import SyntheticScene

RECIPE = ["-c", "blender/instant_ngp"]
OVERLAY = [*RECIPE, "-c", "overlays/small"]


@pytest.fixture(scope="module")
def root(scene_cache: Path) -> Path:
    """The synthetic scene, which is kept in NeRF-Synthetic format; 24 x 24 behind the overlay."""
    scene = SyntheticScene(resolution=96, n_train=24, n_test=9, n_val=1, cache_dir=str(scene_cache))
    scene.prepare_data()
    return scene.source.root  # type: ignore[attr-defined,no-any-return]


def test_it_shrinks_what_costs_and_keeps_the_rest(root: Path) -> None:
    alone, small = (build([*words, "--data.root", str(root), "--trainer.logger=false"]) for words in (RECIPE, OVERLAY))
    weights = [sum(p.numel() for p in cli.model.parameters()) for cli in (alone, small)]
    assert small.model.samples_per_step == alone.model.samples_per_step // 16
    assert weights[1] < weights[0] / 4
    assert small.trainer.max_steps <= 1000
    assert small.trainer.precision == "32-true"
    assert type(small.trainer.strategy).__name__ == "SingleDeviceStrategy"
    assert [len(cli.datamodule.scene("test").names) for cli in (alone, small)] == [9, 8]
    assert [cli.datamodule.scene("test").cameras.shape(0) for cli in (alone, small)] == [(96, 96), (24, 24)]
    assert [type(c) for c in small.trainer.callbacks] == [type(c) for c in alone.trainer.callbacks]
    configs = [cli.config.as_dict()["model"]["init_args"]["optimizer"] for cli in (alone, small)]
    for name in ("lr", "betas", "eps", "ema_decay"):
        assert configs[0]["init_args"][name] == configs[1]["init_args"][name]


@pytest.mark.slow
def test_it_learns_a_scene_on_a_cpu(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of its steps. No picture here is finer than the overlay's finest level."""
    monkeypatch.chdir(tmp_path)
    words = ["fit", *OVERLAY, "--data.root", str(root), "--trainer.accelerator=cpu", "--trainer.max_steps=160"]
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *words, "--trainer.enable_progress_bar=false"])
    main()
    (folder,) = Path("runs/blender/instant_ngp").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["images"] == 8
    assert results["psnr"] > results["psnr_of_mean_image"] + 3
