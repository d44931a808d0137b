from __future__ import annotations

import re
import time
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.callbacks import OccupancyGridUpdate, Preview, PSNRLogger, RayBudget, Telemetry
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.callbacks.image_logger import GAP, Panel, comparison, labelled
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.callbacks.turntable import save_video
from lightning_nerf.estimators import Estimator, OccupancyGrid
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


NOTHING_SEEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a box elsewhere": ({"aabb": [[50.0, 50, 50], [51, 51, 51]]}, {}, r"no ray meets the scene's box, \(50, 50, 50\)"),
    "near beyond the scene": ({"near": 100.0, "far": 200.0}, {}, r"none between near = 100 and far = 200; .*near <= \d"),
    "far before the scene": ({"near": 0.01, "far": 0.1}, {}, r"none between near = 0.01 and far = 0.1; .*far >= \d"),
    "step longer than the box": ({}, {"step_size": 50.0}, r"step_size = 50 is longer than .* step_size = 0.00\d"),
    "capacity": ({}, {"samples_per_step": 1}, r"samples_per_step = 1 is less"),
}


@pytest.mark.parametrize("row", NOTHING_SEEN)
@pytest.mark.parametrize("steps", [3, 30])
def test_a_fit_that_sees_nothing_is_told_why_early_and_once(
    row: str, steps: int, tmp_path: Path, scene_cache: Path
) -> None:
    data, model, said = NOTHING_SEEN[row]
    if "step_size" in model:
        model = {"estimator": OccupancyGrid(resolution=16, warmup_steps=16, **model)}

    class Steps(L.Callback):
        done = 0
        told: int | None = None

        def on_train_batch_end(self, *_: Any) -> None:
            self.done += 1
            if any("no step had a sample" in str(w.message) for w in caught) and self.told is None:
                self.told = self.done

    counted = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(tmp_path, max_steps=steps, callbacks=[RayBudget(), counted])
        fit.fit(tiny_module(**model), tiny_scene(scene_cache, **data))
    (message,) = [str(w.message) for w in caught if "no step had a sample" in str(w.message)]
    assert re.search(said, message), message
    assert counted.told == (8 if steps == 30 else None)


@pytest.mark.parametrize("side", [5, 64, 400])
def test_panels_have_names_gaps_and_scales(side: int) -> None:
    colors = [torch.tensor([0.1 * i, 0.5, 0.25]) for i in range(1, 4)]
    row = [
        Panel(name, color.expand(side, side, 3), scale)
        for name, color, scale in zip(["prediction", "truth", "error"], colors, [None, None, (0.0, 0.2)], strict=True)
    ]
    picture = labelled(row)
    assert picture.dtype == torch.uint8
    white = (picture == 255).all(-1)
    place = []
    for panel in row:
        inside = (picture == to_uint8(panel.image)[0, 0]).all(-1)
        ys, xs = inside.nonzero().unbind(1)
        top, bottom, left, right = (int(v) for v in (ys.min(), ys.max(), xs.min(), xs.max()))
        assert (bottom - top + 1, right - left + 1) == (side, side)  # as it is, and whole
        assert not white[:top, left : left + 40].all()  # its name
        place.append((left, right, bottom))
    for (_, right, bottom), (left, _, _) in pairwise(place):
        assert left - right - 1 >= GAP
        assert white[: bottom + 1, right + 1 : left].any(0).all()
    left, _, bottom = place[-1]
    below = picture[bottom + 1 :, left:]
    for end in colorize(torch.tensor([0.0, 1.0])):  # the error's colors, from 0 to 0.2
        assert (below == to_uint8(end)).all(-1).any()
    assert white[bottom + 1 :, : place[1][1]].all()  # the others have no scale


class Watch(L.Callback):
    """The preview's file after each step."""

    def __init__(self) -> None:
        self.seen: list[bytes | None] = []

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.1)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        path = run_folder(trainer) / "preview.png"
        self.seen.append(path.read_bytes() if path.exists() else None)


class Album(CSVLogger):
    """A logger that takes pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pictures: list[tuple[str, int]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.pictures.append((key, step))


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_preview_shows_the_run_and_changes_nothing(
    split: str, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, previewed = tiny_module(), tiny_module()
    previewed.load_state_dict(plain.state_dict())
    trainer(tmp_path, max_steps=6).fit(plain, tiny_scene(scene_cache))

    monkeypatch.setattr("lightning_nerf.callbacks.preview.SHARE", 1.0)
    render, modes = type(previewed).render_view, []

    def slow(module: Any, *args: Any) -> Any:
        modes.append(module.training)
        time.sleep(0.3)
        return render(module, *args)

    monkeypatch.setattr(type(previewed), "render_view", slow)
    watch, album = Watch(), Album(tmp_path)
    fit = trainer(tmp_path, max_steps=6, callbacks=[Preview(1e-6, view=1, split=split), watch], logger=album)
    fit.fit(previewed, tiny_scene(scene_cache))
    assert all(watch.seen)
    assert len(set(watch.seen)) > 1
    assert album.pictures == [(f"preview/r_{1}", step) for step in range(6)]
    torch.testing.assert_close(previewed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert modes == [False] * 6  # as in evaluation
    assert 0.6 <= float(clock_of(fit).training_seconds or 0) < 1.8  # six pauses of 0.3 s are not in it


def test_previews_take_a_tenth_of_the_time(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lightning_nerf.callbacks.preview.time.monotonic", lambda: now[0])
    monkeypatch.setattr("lightning_nerf.callbacks.preview.clock_of", lambda _: SimpleNamespace(halt=int, resume=int))
    shown: list[float] = []

    def slow(*_: Any) -> None:
        shown.append(now[0])
        now[0] += 5.0

    preview = Preview(every_seconds=10)
    monkeypatch.setattr(preview, "_show", slow)
    module: Any = SimpleNamespace(datamodule=SimpleNamespace(scene=lambda _: SimpleNamespace(n_views=1)))
    run: Any = SimpleNamespace(is_global_zero=True)
    monkeypatch.setattr("lightning_nerf.callbacks.preview.run_folder", lambda _: tmp_path)
    preview.on_fit_start(run, module)
    for _ in range(120):
        now[0] += 1.0
        preview.on_train_batch_end(run, module, None, None, 0)
    assert shown == [10.0, 60.0, 110.0]


def test_a_preview_of_no_view_is_refused(tmp_path: Path, scene_cache: Path) -> None:
    fit = trainer(tmp_path, max_steps=1, callbacks=[Preview(view=7)])
    with pytest.raises(ValueError, match="view: expected one of the 2 views of the test split, got 7"):
        fit.fit(tiny_module(), tiny_scene(scene_cache))
    for options in ({"every_seconds": 0}, {"view": -1}, {"split": "all"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Preview(**options)
