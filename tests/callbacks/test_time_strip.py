"""What shows that a scene moves: the strip of one view over time, and the turntable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from lightning_nerf.callbacks import TimeStrip, Turntable
from lightning_nerf.callbacks.image_logger import GAP
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.callbacks.time_strip import significant_digits
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import NeRFDataModule
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.modules import NeRFModule
from tests.callbacks.test_loggers import Album, FullDisk
from tests.estimators.test_times import TimedField
from tests.render.scene import RADIUS, Ball, MovingBall
from tests.scenes import TimedSource, tiny_module, tiny_scene, trainer

SIDE = 32
BOX = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]


def moving(cache: Path, field: type[MovingBall | Ball] = MovingBall) -> tuple[NeRFModule, NeRFDataModule]:
    """A ball whose red tells the time, and views of times from 2 to 5; five test views, three to validate on."""
    source = TimedSource(SIDE, n_train=4, n_val=3, n_test=5, cache_dir=str(cache))
    module = NeRFModule(field(), OccupancyGrid(resolution=8, step_size=0.02), samples_per_step=2**12, max_rays=64,
                        initial_rays=16)  # fmt: skip
    module.field.radius.fill_(RADIUS)
    return module, NeRFDataModule(source, aabb=BOX, near=2.0, far=6.0)


class Kept(Album):
    """Keeps the pictures themselves."""

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir)
        self.pictures: dict[str, np.ndarray] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        super().log_image(key, images, step)
        self.pictures[key] = images[0]


def panels(strip: np.ndarray, n: int) -> list[np.ndarray]:
    """The n pictures of a strip, from their left edge on as wide as the picture is."""
    width = (strip.shape[1] - GAP) // n
    bottom = [row for row in range(strip.shape[0]) if (strip[row] < 250).any()][-1]
    top = bottom - SIDE // 2
    return [strip[top:bottom, GAP + i * width : GAP + i * width + SIDE] for i in range(n)]


def red(picture: np.ndarray) -> float:
    """The time that the ball's color tells: its pixels are red and black alone, the background is white."""
    return float(picture[(picture[..., 1] < 3) & (picture[..., 2] < 3)][:, 0].mean()) / 255 * 3 + 2


def strips(run: L.Trainer) -> list[str]:
    return sorted(path.name for path in (run_folder(run) / "images").glob("*over_time.png"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_strip_shows_one_view_from_the_splits_first_time_to_its_last(
    tmp_path: Path, scene_cache: Path, split: str
) -> None:
    logger = Kept(tmp_path)
    module, data = moving(scene_cache)
    run = trainer(tmp_path, logger=[logger], callbacks=[TimeStrip(n_times=4, view=1)], limit_val_batches=1)
    (run.validate if split == "val" else run.test)(module, data, verbose=False)
    assert strips(run) == [f"{split}_over_time.png"]
    strip = imageio.imread(run_folder(run) / "images" / f"{split}_over_time.png")
    assert np.array_equal(logger.pictures[f"{split}/over_time"], strip)
    shown = panels(strip, 4)
    assert [red(picture) for picture in shown] == pytest.approx([2, 3, 4, 5], abs=0.02)

    camera = data.scene(split).cameras.chosen([1])._replace(times=torch.tensor([4.0]))
    expected = (module.render_camera(camera, 0, torch.ones(3)).rgb * 255).round().byte().numpy()
    rows = [np.array_equal(strip[top : top + SIDE, GAP + 2 * (strip.shape[1] - GAP) // 4 :][:, :SIDE], expected)
            for top in range(strip.shape[0] - SIDE + 1)]  # fmt: skip
    assert sum(rows) == 1


def test_a_fit_logs_a_strip_after_each_validation(tmp_path: Path, scene_cache: Path) -> None:
    album = Album(tmp_path)
    module, data = learning(scene_cache)
    options = {"max_steps": 4, "val_check_interval": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1}
    run = trainer(tmp_path, logger=[album], callbacks=[TimeStrip(n_times=2)], **options)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert [(key, step) for key, *_, step in album.seen] == [
        ("val/over_time", 1),
        ("val/over_time", 3),
        ("test/over_time", 4),
    ]


def learning(cache: Path) -> tuple[Any, NeRFDataModule]:
    """A field with parameters, of the same views."""
    return tiny_module(field=TimedField()), moving(cache)[1]


def test_scenes_and_fields_that_stand_still_have_no_strip(tmp_path: Path, scene_cache: Path) -> None:
    still, data = moving(scene_cache, Ball)
    for module, scene in ((still, data), (still, tiny_scene(scene_cache, aabb=BOX))):
        album = Album(tmp_path)
        run = trainer(tmp_path, logger=[album], callbacks=[TimeStrip()], limit_val_batches=1)
        run.validate(module, scene, verbose=False)
        run.test(module, scene, verbose=False)
        assert album.seen == []
        assert strips(run) == []


def test_a_view_that_is_not_there_is_named_before_the_training(tmp_path: Path, scene_cache: Path) -> None:
    module, data = learning(scene_cache)
    run = trainer(tmp_path, callbacks=[TimeStrip(view=3)], max_steps=2, limit_val_batches=1)
    with pytest.raises(BadArgument, match="view: expected one of the 3 views of the val split, got 3"):
        run.fit(module, data)
    assert run.global_step == 0
    run = trainer(tmp_path, callbacks=[TimeStrip(view=3)], max_steps=2)
    run.fit(module, data)  # does not validate,
    run.test(module, data, verbose=False)  # and of the five test views there is one
    rendered: list[object] = []
    note = LambdaCallback(on_test_batch_end=lambda *args, **kwargs: rendered.append(args))
    run = trainer(tmp_path, callbacks=[TimeStrip(view=5), note])
    with pytest.raises(BadArgument, match="view: expected one of the 5 views of the test split, got 5"):
        run.test(module, data, verbose=False)
    assert not rendered  # refused before the first view is rendered


def test_a_test_view_that_is_not_there_is_named_before_a_fit_that_does_not_validate(
    tmp_path: Path, scene_cache: Path
) -> None:
    module, data = learning(scene_cache)
    run = trainer(tmp_path, callbacks=[TimeStrip(view=99)], max_steps=2, limit_val_batches=0)
    with pytest.raises(BadArgument, match="view: expected one of the 5 views of the test split, got 99"):
        run.fit(module, data)
    assert run.global_step == 0


@pytest.mark.parametrize(("view", "has_test", "reads"), [(0, True, False), (3, False, False), (3, True, True)])
def test_a_fit_reads_test_views_only_where_one_may_be_missing(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch, view: int, has_test: bool, reads: bool
) -> None:
    module, data = learning(scene_cache)
    read, seen = TimedSource.read, list[str]()
    monkeypatch.setattr(TimedSource, "has_test_views", lambda self: has_test)
    monkeypatch.setattr(TimedSource, "read", lambda self, split: (seen.append(split), read(self, split))[1])
    trainer(tmp_path, callbacks=[TimeStrip(view=view)], max_steps=1).fit(module, data)
    assert ("test" in seen) == reads


@pytest.mark.parametrize(("name", "value"), [("n_times", 0), ("n_times", 1.5), ("n_times", 1001), ("view", -1)])
def test_bad_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        TimeStrip(**{name: value})


@pytest.mark.filterwarnings("ignore:FullDisk. .* is lost, the run goes on")
@pytest.mark.parametrize(
    ("first", "last", "n", "expected"),
    [
        (0.0, 1.0, 5, ["0", "0.25", "0.5", "0.75", "1"]),
        (0.0, 1.0, 4, ["0", "0.333", "0.667", "1"]),
        (1000.0, 1004.0, 3, ["1000", "1002", "1004"]),
        (-1e6, -1e6 + 70, 2, ["-1e+06", "-999930"]),
        (3.0, 3.0, 2, ["3", "3"]),
        (0.1, 0.1, 1, ["0.1"]),
        (0.0, 1e-30, 2, ["0", "1e-30"]),
        (-3e38, 3e38, 3, ["-3e+38", "0", "3e+38"]),
    ],
)
def test_a_strips_labels_tell_its_times_apart(first: float, last: float, n: int, expected: list[str]) -> None:
    times = torch.linspace(first, last, n, dtype=torch.float64)
    digits = significant_digits(times.float())
    assert [f"{time:.{digits}g}" for time in times.tolist()] == expected


def test_a_logger_that_fails_over_a_strip_does_not_end_the_run(tmp_path: Path, scene_cache: Path) -> None:
    module, data = moving(scene_cache)
    run = trainer(tmp_path, logger=[FullDisk(tmp_path)], callbacks=[TimeStrip(n_times=2)])
    with pytest.warns(UserWarning, match="FullDisk: picture 'test/over_time' is lost, the run goes on: OSError: No space"):
        run.test(module, data, verbose=False)
    assert strips(run) == ["test_over_time.png"]


def test_the_time_passes_once_while_the_turntable_turns(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films: list[np.ndarray] = []

    def keep(stem: Path, frames: np.ndarray, fps: int) -> Path:
        films.append(frames)
        return stem

    monkeypatch.setattr("lightning_nerf.callbacks.turntable.save_video", keep)
    module, data = moving(scene_cache)
    trainer(tmp_path, callbacks=[Turntable(n_frames=7)]).test(module, data, verbose=False)
    (frames,) = films
    assert [red(frame) for frame in frames] == pytest.approx([2, 2.5, 3, 3.5, 4, 4.5, 5], abs=0.02)
    rows = [float(np.nonzero((frame[..., 1] < 3) & (frame[..., 2] < 3))[0].mean()) for frame in frames]
    assert rows == sorted(rows, reverse=True)  # the ball rises
