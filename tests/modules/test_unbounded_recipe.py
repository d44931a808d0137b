"""The recipe of the procedural landscape, shortened for a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modules.short_recipes import psnr_of_fit

# Over the recipe: fewer and smaller pictures, fewer rays, a quicker start. Field and proposals are the recipe's.
SHORT = """
trainer:
  accelerator: cpu
  max_steps: 400
  logger: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.PSNRLogger, init_args: {ssim: false}}
model:
  init_args:
    samples_per_step: 6144
    max_rays: 256
    initial_rays: 256
    estimator: {init_args: {anneal_steps: 200}}
data:
  init_args: {resolution: 48, n_train: 40, n_test: 4, n_val: 1}
"""
FLOOR = 19.7  # dB: 1 below the least of four seeds. The mean training image gives 14.4.


@pytest.mark.slow
def test_the_recipe_learns_what_is_near_and_what_is_far(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = psnr_of_fit("synthetic/unbounded", SHORT, tmp_path, scene_cache, monkeypatch)
    assert reached >= FLOOR
