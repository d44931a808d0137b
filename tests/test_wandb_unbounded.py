"""What a real offline run of Weights & Biases has of a fit with proposal networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import imageio.v3 as imageio
import pytest

from tests.callbacks.wandb_file import column, offline_runs
from tests.callbacks.wandb_fits import quiet, tracked_fit  # noqa: F401  (quiet: a fixture)

# Over the recipe, whose losses, field and estimator these are: fewer rays and pictures.
TINY = """
trainer:
  accelerator: cpu
  max_steps: 10
  limit_val_batches: 1
  val_check_interval: 4
  enable_checkpointing: false
  callbacks:
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.Telemetry, init_args: {every_n_steps: 2}}
    - {class_path: lightning_nerf.callbacks.RoundHistograms, init_args: {every_n_steps: 4, n_rays: 64, n_bins: 8}}
    - {class_path: lightning_nerf.callbacks.PSNRLogger}
    - {class_path: lightning_nerf.callbacks.ImageLogger}
    - {class_path: lightning_nerf.callbacks.RunResults}
model: {init_args: {samples_per_step: 1536, max_rays: 64, initial_rays: 64}}
data: {init_args: {resolution: 24, n_train: 5, n_val: 1, n_test: 1}}
"""
COUNTS = [64, 32, 24]  # samples of each round on a ray


@pytest.mark.filterwarnings("ignore:Discarding init_args")
def test_a_fit_with_proposals_logs_each_loss_histograms_of_rounds_and_pictures(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    offline = "--trainer.logger.init_args.offline=true"
    run_id = tracked_fit(monkeypatch, "synthetic/unbounded", f"--data.init_args.cache_dir={scene_cache}", offline)
    (run,) = offline_runs(tmp_path / "runs")
    assert run.id == run_id
    total = [0.0] * 5
    for name, weight in (("photometric", 1.0), ("interlevel", 1.0), ("distortion", 0.002)):
        logged = column(run, f"train/{name}")
        assert [step for step, _ in logged] == [0, 2, 4, 6, 8], name
        assert all(math.isfinite(value) and value > 0 for _, value in logged), name
        total = [so_far + weight * value for so_far, (_, value) in zip(total, logged, strict=True)]
    assert [value for _, value in column(run, "train/loss")] == pytest.approx(total, rel=1e-5)

    reads = [0, 4, 8, 10]  # the last after the last step
    for i, count in enumerate(COUNTS):
        for name in ("samples", "weights"):
            assert column(run, f"rounds/{name}_{i}._type") == [(step, "histogram") for step in reads]
            for (_, values), (_, bins) in zip(
                column(run, f"rounds/{name}_{i}.values"), column(run, f"rounds/{name}_{i}.bins"), strict=True
            ):
                assert bins == pytest.approx([j / 8 for j in range(9)])
                assert sum(values) == pytest.approx(64 * count) if name == "samples" else 0 < sum(values) <= 64 * 1.0001
        entropies = column(run, f"rounds/entropy_{i}")
        assert [step for step, _ in entropies] == reads
        assert all(0 < value <= 1 for _, value in entropies)

    folder = tmp_path / "runs/lightning-nerf" / run_id
    ((step, reached),) = column(run, "test/psnr")
    assert (step, reached) == (10, pytest.approx(json.loads((folder / "results.json").read_text())["psnr"]))
    assert [step for step, _ in column(run, "val/r_0._type")] == [3, 7]
    kept = imageio.imread(folder / "images/val_r_0.png")
    pictures = [path for path in run.media if path.parent.name == "val"]
    assert any((imageio.imread(path) == kept).all() for path in pictures)
