"""Real offline runs of Weights & Biases, whose files are read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from lightning_nerf.callbacks import ImageLogger
from lightning_nerf.callbacks.loggers import wandb_run_id
from tests.callbacks.wandb_file import column, offline_runs
from tests.callbacks.wandb_fits import quiet, tracked_fit  # noqa: F401  (quiet: a fixture)
from tests.scenes import tiny_module, tiny_scene, trainer

# Over the recipe: the same parts, smaller.
TINY = """
trainer:
  accelerator: cpu
  limit_val_batches: 1
  val_check_interval: 4
  callbacks:
    - {class_path: lightning_nerf.callbacks.Telemetry, init_args: {every_n_steps: 2}}
    - {class_path: lightning_nerf.callbacks.EMAWeights}
    - {class_path: lightning_nerf.callbacks.PSNRLogger}
    - {class_path: lightning_nerf.callbacks.ImageLogger}
    - {class_path: lightning_nerf.callbacks.Turntable, init_args: {n_frames: 2}}
    - {class_path: lightning_nerf.callbacks.RunResults}
    - {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_last: true}}
model:
  init_args:
    samples_per_step: 1024
    field: {init_args: {log2_table_size: 10}}
    estimator: {init_args: {resolution: 16}}
data:
  init_args: {resolution: 24, n_train: 5, n_val: 1, n_test: 1}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> SimpleNamespace:
    """A fit of eight steps by recipe and overlay, another, and the first gone on with to twelve steps."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "tiny.yaml").write_text(TINY)

    def fit(steps: int, *arguments: str) -> str:
        options = [f"--data.cache_dir={scene_cache}", f"--trainer.max_steps={steps}", *arguments]
        return tracked_fit(patch, "synthetic/instant_ngp", *options)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # A run that goes on finds its checkpoints, and says so.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "online")  # what the command line says has to be enough
        first = fit(8, "--trainer.logger.init_args.offline=true")
        patch.setenv("WANDB_MODE", "offline")
        before = {path: path.read_bytes() for path in folder.glob(f"runs/*/{first}/**/*") if path.is_file()}
        second = fit(4, "--trainer.logger.init_args.name=another")
        untouched = {path: path.read_bytes() for path in before}
        resumed = fit(12, f"--ckpt_path=runs/lightning-nerf/{first}/checkpoints/last.ckpt")
    return SimpleNamespace(
        folder=folder, first=first, second=second, resumed=resumed, before=before, untouched=untouched,
        files=offline_runs(folder / "runs"),
    )  # fmt: skip


@pytest.mark.slow
def test_two_runs_do_not_touch_and_a_resumed_one_goes_on(runs: SimpleNamespace) -> None:
    assert runs.first != runs.second
    assert runs.before == runs.untouched
    assert runs.resumed == runs.first
    assert [file.id for file in runs.files] == [runs.first, runs.second, runs.first]
    assert [file.name for file in runs.files] == ["synthetic/instant_ngp", "another", "synthetic/instant_ngp"]
    assert sorted(path.name for path in (runs.folder / "runs/lightning-nerf").iterdir()) == sorted(
        {runs.first, runs.second}
    )
    assert [step for step, _ in column(runs.files[0], "val/psnr")] == [3, 7]
    assert [step for step, _ in column(runs.files[2], "val/psnr")] == [11]
    last = runs.folder / f"runs/lightning-nerf/{runs.first}/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 12
    assert wandb_run_id(last) == runs.first


@pytest.mark.slow
def test_all_of_a_runs_files_lie_together(runs: SimpleNamespace) -> None:
    folder = runs.folder / "runs/lightning-nerf" / runs.second
    names = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*") if path.is_file()}
    assert {"config", "results", "turntable", "images/val_r_0", "images/test_r_0", "checkpoints/last"} <= names
    assert sorted(path.name for path in (runs.folder / "runs").iterdir()) == ["lightning-nerf", "wandb"]


@pytest.mark.slow
def test_the_whole_configuration_is_logged_once(runs: SimpleNamespace) -> None:
    run = runs.files[1]
    saved = yaml.safe_load((runs.folder / "runs/lightning-nerf" / runs.second / "config.yaml").read_text())
    assert run.config == saved
    assert len(run.config_keys) == len(set(run.config_keys))
    assert run.config["model"]["init_args"]["samples_per_step"] == 1024
    assert run.config["model"]["init_args"]["estimator"]["init_args"]["n_levels"] == 1  # a default that no recipe names


@pytest.mark.slow
def test_metrics_throughput_and_results_are_logged(runs: SimpleNamespace) -> None:
    run, resumed = runs.files[1:]
    assert [step for step, _ in column(run, "train/psnr")] == [0, 2]
    assert [step for step, _ in column(resumed, "train/psnr")] == [8, 10]
    ((step, rays),) = column(run, "train/rays_per_second")
    assert (step, rays > 0) == (2, True)
    ((step, reached),) = column(run, "test/psnr")
    results = json.loads((runs.folder / "runs/lightning-nerf" / runs.second / "results.json").read_text())
    assert (step, reached) == (4, pytest.approx(results["psnr"]))


@pytest.mark.slow
def test_pictures_and_film_are_logged(runs: SimpleNamespace) -> None:
    run = runs.files[1]
    (step, size), (_, kind) = column(run, "val/r_0.width")[0], column(run, "val/r_0._type")[0]
    assert (step, size >= 5 * 24, kind) == (3, True, "images/separated")
    assert [step for step, _ in column(run, "test/turntable._type")] == [4]
    (val,) = [path for path in run.media if path.parent.name == "val"]
    (film,) = [path for path in run.media if path.stem.startswith("turntable")]
    folder = runs.folder / "runs/lightning-nerf" / runs.second
    assert (imageio.imread(val) == imageio.imread(folder / "images/val_r_0.png")).all()
    assert film.read_bytes() == (folder / "turntable").with_suffix(film.suffix).read_bytes()


@pytest.mark.slow
def test_a_script_that_resumes_names_the_run(tmp_path: Path, scene_cache: Path) -> None:
    import wandb

    def fit(steps: int, **options: Any) -> str:
        logger = WandbLogger(save_dir=tmp_path, project="script", **options)
        module = tiny_module()
        run = trainer(tmp_path, logger=logger, max_steps=steps, callbacks=[ImageLogger()])
        run.fit(module, tiny_scene(scene_cache), ckpt_path=path if path.is_file() else None)
        run.save_checkpoint(path)
        wandb.finish()
        return str(logger.version)

    path = tmp_path / "last.ckpt"
    first = fit(2, id=wandb_run_id(path))
    assert fit(4, id=wandb_run_id(path)) == first
    with pytest.warns(UserWarning, match=rf"written by the W&B run '{first}', and this fit logs to 'mine'.*wandb_run_id"):
        assert fit(6, id="mine") == "mine"
    assert wandb_run_id(path) == "mine"
    # Without a command line the hyper-parameters are the module's arguments.
    files = offline_runs(tmp_path)
    assert [file.id for file in files] == [first, first, "mine"]
    assert sorted(files[0].config_keys) == ["class_path", "init_args"]
    assert files[0].config["init_args"]["samples_per_step"] == 2048
