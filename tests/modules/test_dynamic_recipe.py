"""The recipe of the procedural scene that moves, shortened for a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_nerf.cli import main

# Over the recipe: fewer and smaller pictures, fewer samples, longer steps along the rays. The field is the recipe's.
SHORT = """
trainer:
  accelerator: cpu
  max_steps: 700
  logger: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.OccupancyGridUpdate, init_args: {every_n_steps: 16}}
    - {class_path: lightning_nerf.callbacks.RayBudget}
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.PSNRLogger, init_args: {ssim: false}}
model:
  init_args:
    samples_per_step: 2048
    max_rays: 2048
    random_background_steps: 60
    estimator: {init_args: {resolution: 32, step_size: 0.06}}
data:
  init_args: {resolution: 48, n_train: 60, n_test: 4, n_val: 1}
"""
FLOOR = 19.3  # dB: 1 below the least of three seeds. The mean training image gives 14.5.


@pytest.mark.slow
def test_the_recipe_learns_a_scene_at_times_that_it_has_not_seen(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.yaml").write_text(SHORT)
    words = ["fit", "-c", "synthetic/dynamic", "-c", "short.yaml", f"--data.cache_dir={scene_cache}"]
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *words])
    reached = float(main().trainer.callback_metrics["test/psnr"])
    assert reached >= FLOOR
