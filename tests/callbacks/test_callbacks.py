from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_nerf.callbacks import OccupancyGridUpdate, PSNRLogger, RayBudget, Telemetry
from lightning_nerf.callbacks.colors import colorize
from lightning_nerf.callbacks.image_logger import comparison
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.turntable import save_video
from lightning_nerf.estimators import Estimator
from lightning_nerf.executors import EAGER
from lightning_nerf.types import PackedSamples, Placement, Rays
from tests.scenes import tiny_module, tiny_scene, trainer


def test_psnr_of_a_known_error() -> None:
    truth = torch.rand(8, 8, 3)
    assert float(psnr(truth + 0.1, truth)) == pytest.approx(20.0, abs=1e-3)
    assert float(psnr(truth, truth)) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("rays", "counted", "samples", "expected"),
    [
        (100, 100, 500, 163),  # 5 samples a ray: 0.98 * 832 / 5
        (100, 50, 400, 102),  # half did not fit: 8 a ray
        (100, 100, 0, 200),  # nothing hit: at most twice as many
        (100, 100, 10_000, 50),  # at least half
        (900, 900, 450, 1000),  # no more than the module takes
    ],
)
def test_ray_budget_aims_at_the_capacity(rays: int, counted: int, samples: int, expected: int) -> None:
    module = SimpleNamespace(n_rays=torch.tensor(rays, dtype=torch.int32), samples_per_step=832, max_rays=1000)
    module.executor = EAGER
    buffer = module.n_rays.data_ptr()
    outputs = {"n_samples": torch.tensor(samples), "n_rays": torch.tensor(counted)}
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    fit = SimpleNamespace(overfit_batches=0.0, fit_loop=loops)
    RayBudget(every_n_steps=1, fill=0.98).on_train_batch_end(fit, module, outputs, None, 0)  # type: ignore[arg-type]
    assert int(module.n_rays) == pytest.approx(expected, abs=1)
    assert module.n_rays.data_ptr() == buffer


def test_comparison_has_four_panels_and_survives_an_empty_view() -> None:
    rgb = torch.rand(5, 7, 3)
    for opacity in (torch.zeros(5, 7), torch.ones(5, 7)):
        picture = comparison(rgb, rgb, torch.rand(5, 7), opacity)
        assert picture.shape == (5, 28, 3)
        assert torch.isfinite(picture).all()
        assert torch.equal(picture[:, :7], picture[:, 7:14])


def test_the_occupancy_slice_is_the_middle_one_with_y_upwards() -> None:
    cells = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    cells[0, 3, 0, 2] = True  # right, below
    cells[1] = True  # another level
    view, plain = torch.zeros(8, 6, 3), torch.zeros(8, 6)
    panel = comparison(view, view, plain, plain, cells)[:, 4 * 6 :]
    assert panel.shape == (8, 8, 3)
    full, empty = colorize(torch.tensor([1.0, 0.0]))
    assert torch.allclose(panel[6:, 6:], full.expand(2, 2, 3))
    assert torch.allclose(panel[:6], empty.expand(6, 8, 3))
    assert torch.allclose(panel[6:, :6], empty.expand(2, 6, 3))


def test_video_is_written_whole(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    path = save_video(tmp_path / "turn", frames, fps=10)
    assert path.suffix in {".mp4", ".gif"}
    assert path.stat().st_size > 0


def test_scores_are_the_mean_over_the_split(tmp_path: Path, scene_cache: Path) -> None:
    scene, module = tiny_scene(scene_cache), tiny_module()
    fit = trainer(tmp_path, max_steps=3, callbacks=[PSNRLogger()])
    fit.fit(module, scene)
    fit.test(module, datamodule=scene, verbose=False)
    test, values = scene.scene("test"), []
    for index in range(test.n_views):
        image = test.picture(index).float() / 255
        truth = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
        values.append(-10 * torch.log10((module.render_view("test", index).rgb - truth).square().mean()))
    assert float(fit.callback_metrics["test/psnr"]) == pytest.approx(float(torch.stack(values).mean()), abs=1e-3)
    assert -1 <= float(fit.callback_metrics["test/ssim"]) <= 1


@pytest.mark.parametrize("resolution", [4, 8])
def test_pictures_too_small_for_ssim_are_scored_without_and_told_once(
    tmp_path: Path, scene_cache: Path, resolution: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Told(L.Callback):
        before: int | None = None

        def on_train_start(self, *_: Any) -> None:
            self.before = len(messages())

    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records if "SSIM is left out" in record.getMessage()]

    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    told, scene, module = Told(), tiny_scene(scene_cache, resolution=resolution), tiny_module()
    fit = trainer(tmp_path, max_steps=2, callbacks=[PSNRLogger(), told])
    fit.fit(module, scene)
    fit.test(module, scene, verbose=False)
    assert "test/psnr" in fit.callback_metrics
    assert "test/ssim" not in fit.callback_metrics
    assert told.before == 1
    assert messages() == [f"SSIM is left out: its window has 11 pixels a side, a picture here has {resolution}"]


def test_telemetry_reads_the_step_it_names(tmp_path: Path, scene_cache: Path) -> None:
    telemetry = Telemetry(every_n_steps=5)
    trainer(tmp_path, max_steps=20, callbacks=[telemetry]).fit(tiny_module(), tiny_scene(scene_cache))
    latest = telemetry.latest
    assert latest["train/psnr"] == pytest.approx(-10 * np.log10(latest["train/mse"]))
    assert latest["train/samples_per_second"] > 0
    assert 0 < latest["train/occupied"] <= 1


class Dawdles(L.Callback):
    """Takes its time over validation and checkpoints."""

    def on_validation_batch_end(self, *_: Any) -> None:
        time.sleep(1.0)

    def on_save_checkpoint(self, *_: Any) -> None:
        time.sleep(1.0)


@pytest.mark.parametrize("meanwhile", ["validation", "a checkpoint"])
def test_telemetry_times_nothing_but_training(tmp_path: Path, scene_cache: Path, meanwhile: str) -> None:
    telemetry = Telemetry(every_n_steps=2)
    callbacks: list[Any] = [telemetry, Dawdles()]
    options: dict[str, Any] = {"val_check_interval": 3, "limit_val_batches": 1}
    if meanwhile == "a checkpoint":
        options = {"enable_checkpointing": True}
        callbacks.append(ModelCheckpoint(tmp_path, every_n_train_steps=3))
    trainer(tmp_path, max_steps=5, callbacks=callbacks, **options).fit(tiny_module(), tiny_scene(scene_cache))
    assert 0 < telemetry.latest["train/ms_per_step"] < 1000 / 2  # a second in two steps


class Learner(Estimator):
    """One sample on each ray, which it places without learning anything."""

    fixed_count = 1

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[tuple[int, int, tuple[int, ...]]] = []

    def bind(self, scene_box: Any) -> Learner:
        return self

    def place(self, rays: Rays, query: Any = None, *, key: Any = None, capacity: int | None = None, **_: Any) -> Placement:
        n = len(rays.near)
        offsets = torch.arange(n + 1, dtype=torch.int32)
        samples = PackedSamples(rays.near, rays.far, offsets[:-1], offsets, torch.ones(n, dtype=torch.bool))
        return Placement(samples)

    def update(self, density_fn: Any, *, step: int, key: torch.Tensor | None = None, times: Any = None) -> None:
        assert key is not None
        assert times is None
        self.updates.append((step, int(key[2]), tuple(density_fn(torch.zeros(2, 3)).shape)))


@pytest.mark.parametrize("needs_update", [True, False])
def test_estimators_that_learn_are_updated(needs_update: bool, tmp_path: Path, scene_cache: Path) -> None:
    estimator = Learner()
    estimator.needs_update = needs_update
    callback = OccupancyGridUpdate(every_n_steps=2)
    trainer(tmp_path, max_steps=5, callbacks=[callback]).fit(tiny_module(estimator=estimator), tiny_scene(scene_cache))
    assert estimator.updates == ([(s, s, (2,)) for s in (0, 2, 4)] if needs_update else [])


@pytest.mark.parametrize("every", [0, -1])
def test_bad_arguments_are_named(every: int) -> None:
    with pytest.raises(ValueError, match="every_n_steps"):
        OccupancyGridUpdate(every_n_steps=every)
    with pytest.raises(ValueError, match="every_n_steps"):
        Telemetry(every_n_steps=every)
    with pytest.raises(ValueError, match="every_n_steps"):
        RayBudget(every_n_steps=every)
    with pytest.raises(ValueError, match="fill"):
        RayBudget(fill=float(every))
