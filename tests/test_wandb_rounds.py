"""What a real offline run of Weights & Biases has of a fit with two rounds of samples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import imageio.v3 as imageio
import pytest

from tests.callbacks.wandb_file import column, offline_runs
from tests.callbacks.wandb_fits import quiet, tracked_fit  # noqa: F401  (quiet: a fixture)

# Over the recipe: the same losses and estimator, smaller, on pictures that need no download.
TINY = """
trainer:
  accelerator: cpu
  strategy: auto
  precision: 32-true
  max_steps: 8
  limit_val_batches: 1
  val_check_interval: 4
  enable_checkpointing: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.Telemetry, init_args: {every_n_steps: 2}}
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.PSNRLogger}
    - {class_path: lightning_nerf.callbacks.ImageLogger}
    - {class_path: lightning_nerf.callbacks.RunResults}
model:
  init_args:
    samples_per_step: 1024
    max_rays: 64
    initial_rays: 64
    field: {init_args: {width: 16, hidden_layers: 3, skip: 1, view_width: 8}}
    estimator:
      init_args:
        n_coarse: 8
        n_fine: 8
        field: {init_args: {width: 16, hidden_layers: 3, skip: 1, view_width: 8}}
data:
  class_path: lightning_nerf.data.SyntheticScene
  init_args: {resolution: 24, n_train: 5, n_val: 1, n_test: 1, background: white}
"""


@pytest.mark.filterwarnings("ignore:Discarding init_args")
def test_a_fit_with_two_rounds_logs_each_loss_and_pictures(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    offline = "--trainer.logger.init_args.offline=true"
    run_id = tracked_fit(monkeypatch, "blender/vanilla_hierarchical", f"--data.init_args.cache_dir={scene_cache}", offline)
    (run,) = offline_runs(tmp_path / "runs")
    assert run.id == run_id
    losses = {name: column(run, f"train/{name}") for name in ("photometric", "coarse_photometric", "loss", "mse")}
    for name, logged in losses.items():
        assert [step for step, _ in logged] == [0, 2, 4, 6], name
        assert all(math.isfinite(value) and value > 0 for _, value in logged), name
    for (_, fine), (_, coarse), (_, both) in zip(
        losses["photometric"], losses["coarse_photometric"], losses["loss"], strict=True
    ):
        assert both == pytest.approx(fine + coarse, rel=1e-5)
        assert fine != coarse  # two fields
    assert run.config["model"]["init_args"]["estimator"]["init_args"]["n_fine"] == 8

    folder = tmp_path / "runs/lightning-nerf" / run_id
    ((step, reached),) = column(run, "test/psnr")
    assert (step, reached) == (8, pytest.approx(json.loads((folder / "results.json").read_text())["psnr"]))
    assert [step for step, _ in column(run, "val/r_0._type")] == [3, 7]
    pictures = [path for path in run.media if path.parent.name == "val"]
    assert len(pictures) == 2
    kept = imageio.imread(folder / "images/val_r_0.png")
    assert any((imageio.imread(path) == kept).all() for path in pictures)
