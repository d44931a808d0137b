"""Recipes for published captures, on made-up folders of their layouts, shortened for a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.captures import FOCAL, H, W, facing_poses, write_colmap, write_llff, write_pictures
from tests.modules.short_recipes import fit_shortened

# Over the recipe: fewer steps, rays and weights.
SHORT = """
trainer:
  accelerator: cpu
  strategy: auto
  precision: 32-true
  max_steps: 3
  logger: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.PSNRLogger, init_args: {ssim: false}}
model:
  init_args:
    samples_per_step: 3072
    max_rays: 64
    initial_rays: 64
    field: {init_args: {log2_table_size: 10}}
"""


def write_llff_scene(root: Path) -> None:
    """20 pictures, as fern has."""
    write_llff(root, 20, images="images_4", scale=4, poses=facing_poses)


def write_mipnerf360(root: Path) -> None:
    """Pictures of four sizes, of which the model states none."""
    write_colmap(root, 17, size=(4 * H, 4 * W))
    for n in (2, 4, 8):
        write_pictures(root / f"images_{n}", [f"f_{i}.png" for i in range(17)], 4 * H // n, 4 * W // n)


@pytest.mark.parametrize(
    ("recipe", "write", "tested"),
    [
        ("llff/instant_ngp", write_llff_scene, ["f_0", "f_16", "f_6"]),  # by name, f_10 comes before f_2
        ("mipnerf360/unbounded", write_mipnerf360, ["f_0", "f_16", "f_9"]),
    ],
)
def test_a_recipe_trains_on_the_layout_that_it_is_for(
    recipe: str, write: Callable[[Path], None], tested: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "scene")
    cli = fit_shortened(recipe, SHORT, tmp_path, [f"--data.root={tmp_path / 'scene'}"], monkeypatch)
    test, train = (cli.datamodule.scene(split) for split in ("test", "train"))
    assert test.names == tested
    assert not set(test.names) & set(train.names)
    assert test.cameras.size.tolist() == [[W, H]] * 3  # of images_4
    assert test.cameras.intrinsics[0].tolist() == pytest.approx([FOCAL, FOCAL, W / 2, H / 2])
    assert cli.trainer.global_step == 3
    assert math.isfinite(float(cli.trainer.callback_metrics["test/psnr"]))
