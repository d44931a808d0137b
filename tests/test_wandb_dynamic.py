"""What a real offline run of Weights & Biases has of a fit of a dynamic scene."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import imageio.v3 as imageio
import pytest
from torch import Tensor

from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.losses import Loss
from lightning_nerf.types import Step
from tests.callbacks.wandb_file import column, offline_runs
from tests.callbacks.wandb_fits import quiet, tracked_fit  # noqa: F401  (quiet: a fixture)

RECIPE = """
seed_everything: 0
trainer:
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs, name: dynamic}}
  callbacks:
    - {class_path: lightning_nerf.callbacks.Telemetry, init_args: {every_n_steps: 2}}
    - {class_path: lightning_nerf.callbacks.PSNRLogger}
    - {class_path: lightning_nerf.callbacks.ImageLogger, init_args: {n_views: 1}}
    - {class_path: lightning_nerf.callbacks.TimeStrip, init_args: {n_times: 3}}
    - {class_path: lightning_nerf.callbacks.Turntable, init_args: {n_frames: 2}}
    - {class_path: lightning_nerf.callbacks.RunResults}
model:
  class_path: lightning_nerf.modules.NeRFModule
  init_args:
    samples_per_step: 1024
    max_rays: 64
    initial_rays: 64
    field: {class_path: tests.estimators.test_times.TimedField}
    estimator: {class_path: lightning_nerf.estimators.OccupancyGrid, init_args: {resolution: 16, step_size: 0.1}}
    losses:
      - {class_path: lightning_nerf.losses.Photometric, init_args: {delta: 0.1}}
      - {class_path: tests.test_wandb_dynamic.Haze, init_args: {weight: 0.01}}
data: {class_path: lightning_nerf.data.BlenderData, init_args: {root: moving, background: white}}
"""
TINY = "trainer: {max_steps: 8, limit_val_batches: 1.0, val_check_interval: 4, enable_checkpointing: false}"

# Over synthetic/dynamic: small pictures and grids, and the losses that dynamic scenes have.
SMALL = """
trainer:
  accelerator: cpu
  max_steps: 8
  limit_val_batches: 1.0
  val_check_interval: 4
  enable_checkpointing: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.OccupancyGridUpdate, init_args: {every_n_steps: 4}}
    - {class_path: lightning_nerf.callbacks.RayBudget}
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.Telemetry, init_args: {every_n_steps: 2}}
    - {class_path: lightning_nerf.callbacks.PSNRLogger}
    - {class_path: lightning_nerf.callbacks.TimeStrip, init_args: {n_times: 3}}
    - {class_path: lightning_nerf.callbacks.RunResults}
model:
  init_args:
    samples_per_step: 1024
    max_rays: 256
    initial_rays: 64
    curriculum_steps: 4
    estimator: {init_args: {resolution: 16, step_size: 0.1}}
    losses:
      - {class_path: lightning_nerf.Photometric}
      - {class_path: lightning_nerf.TemporalSmoothness, init_args: {weight: 0.5, max_shift: 0.5}}
      - {class_path: lightning_nerf.PerturbationTV, init_args: {weight: 0.1, n_points: 256}}
      - {class_path: lightning_nerf.Sparsity, init_args: {weight: 0.01, n_points: 64}}
data: {init_args: {resolution: 24, n_train: 10, n_val: 2, n_test: 3}}
"""
WEIGHTS = {"photometric": 1.0, "temporal_smoothness": 0.5, "perturbation_tv": 0.1, "sparsity": 0.01}
WARPED = """
model:
  init_args:
    field:
      class_path: lightning_nerf.DeformedField
      init_args:
        width: 16
        hidden_layers: 2
        skip: null
        canonical:
          class_path: lightning_nerf.InstantNGPField
          init_args: {n_levels: 2, log2_table_size: 10, max_resolution: 32, width: 16}
    losses+: [{class_path: lightning_nerf.WarpSize, init_args: {weight: 0.001}}]
"""
HASHED = """
model:
  init_args:
    field: {init_args: {n_levels: 2, log2_table_size: 10, time_log2_table_size: 8, max_resolution: 32}}
"""
FIELDS = {"hashed": (HASHED, WEIGHTS), "warped": (WARPED, {**WEIGHTS, "warp_size": 0.001})}


class Haze(Loss):
    """Penalizes half-transparent rays."""

    def forward(self, step: Step) -> Tensor:
        opacity, counts = step.render.opacity, step.counts
        return (opacity * (1 - opacity) * counts).sum() / counts.sum().clamp(min=1)


def write_moving(folder: Path, cache: Path) -> None:
    """A scene in D-NeRF's format, ``time`` in each frame from 0 to 1: the procedural one, which stands still."""
    source = SyntheticSource(24, n_train=5, n_val=2, n_test=3, cache_dir=str(cache))
    source.prepare()
    shutil.copytree(source.root, folder)
    for split in ("train", "val", "test"):
        path = folder / f"transforms_{split}.json"
        content = json.loads(path.read_text())
        for i, frame in enumerate(content["frames"]):
            frame["time"] = i / (len(content["frames"]) - 1)
        path.write_text(json.dumps(content))


def test_a_fit_of_a_dynamic_scene_logs_each_loss_scores_over_time_and_a_strip(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_moving(tmp_path / "moving", scene_cache)
    Path("dynamic.yaml").write_text(RECIPE)
    Path("tiny.yaml").write_text(TINY)
    run_id = tracked_fit(monkeypatch, "dynamic.yaml", "--trainer.logger.init_args.offline=true")
    (run,) = offline_runs(tmp_path / "runs")
    assert run.id == run_id
    losses = {name: column(run, f"train/{name}") for name in ("photometric", "haze", "loss")}
    for name, logged in losses.items():
        assert [step for step, _ in logged] == [0, 2, 4, 6], name
        assert all(math.isfinite(value) and value > 0 for _, value in logged), name
    for (_, photometric), (_, haze), (_, both) in zip(*losses.values(), strict=True):
        assert both == pytest.approx(photometric + 0.01 * haze, rel=1e-5)

    # Test views at 0, 0.5 and 1, validation views at 0 and 1.
    folder = tmp_path / "runs/lightning-nerf" / run_id
    results = json.loads((folder / "results.json").read_text())
    assert {name for row in run.rows for name in row if "psnr_time" in name} == {
        "test/psnr_time_0", "test/psnr_time_2", "test/psnr_time_4", "val/psnr_time_0", "val/psnr_time_4",
    }  # fmt: skip
    for part, view in (("psnr_time_0", "r_0"), ("psnr_time_2", "r_1"), ("psnr_time_4", "r_2")):
        assert results["psnr_per_time"][part]["psnr"] == results["psnr_per_image"][view]
        assert column(run, f"test/{part}") == [(8, pytest.approx(results["psnr_per_image"][view]))]
    assert [step for step, _ in column(run, "val/psnr_time_4")] == [3, 7]

    assert [step for step, _ in column(run, "val/over_time._type")] == [3, 7]
    assert [step for step, _ in column(run, "test/over_time._type")] == [8]
    for split in ("val", "test"):
        strips = [path for path in run.media if path.parent.name == split and path.name.startswith("over_time")]
        kept = imageio.imread(folder / f"images/{split}_over_time.png")
        assert kept.shape[1] >= 3 * 24
        assert any((imageio.imread(path) == kept).all() for path in strips)
    assert [step for step, _ in column(run, "test/turntable._type")] == [8]


@pytest.mark.filterwarnings("ignore:Discarding init_args")
@pytest.mark.parametrize("field", FIELDS)
def test_a_fit_by_the_recipe_of_a_dynamic_scene_logs_all_that_belongs_to_time(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.chdir(tmp_path)
    more, weights = FIELDS[field]
    Path("tiny.yaml").write_text(SMALL)
    Path("field.yaml").write_text(more)
    words = ["-c", "field.yaml", "--trainer.logger.init_args.offline=true", f"--data.init_args.cache_dir={scene_cache}"]
    run_id = tracked_fit(monkeypatch, "synthetic/dynamic", *words)
    (run,) = offline_runs(tmp_path / "runs")
    assert run.id == run_id
    assert run.config["model"]["class_path"] == "lightning_nerf.modules.DynamicNeRF"
    total = [0.0] * 4
    for name, weight in weights.items():
        logged = column(run, f"train/{name}")
        assert [step for step, _ in logged] == [0, 2, 4, 6], name
        assert all(math.isfinite(value) and value >= 0 for _, value in logged), name
        assert any(value > 0 for _, value in logged), name
        total = [so_far + weight * value for so_far, (_, value) in zip(total, logged, strict=True)]
    assert [value for _, value in column(run, "train/loss")] == pytest.approx(total, rel=1e-5)

    # Each test view has a time of its own; scores are those of parts of the range of times.
    folder = tmp_path / "runs/lightning-nerf" / run_id
    results = json.loads((folder / "results.json").read_text())
    scores = {name: score["psnr"] for name, score in results["psnr_per_time"].items()}
    parts = {name: score for name, score in scores.items() if score is not None}  # no test view is of the others
    assert sorted(parts) == ["psnr_time_0", "psnr_time_2", "psnr_time_4"]
    for part, score in parts.items():
        assert column(run, f"test/{part}") == [(8, pytest.approx(score))]
    assert sum(parts.values()) / 3 == pytest.approx(results["psnr"])
    for split, steps in (("val", [3, 7]), ("test", [8])):
        assert [step for step, _ in column(run, f"{split}/over_time._type")] == steps
        strips = [path for path in run.media if path.parent.name == split and path.name.startswith("over_time")]
        kept = imageio.imread(folder / f"images/{split}_over_time.png")
        assert kept.shape[1] >= 3 * 24
        assert any((imageio.imread(path) == kept).all() for path in strips)
