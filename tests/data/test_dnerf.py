from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from lightning_nerf.arguments import build, described
from lightning_nerf.cameras import image_rays
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import BlenderData, DNeRFData, NeRFDataModule
from lightning_nerf.data.camera_files import read_cameras
from lightning_nerf.data.sources import DNeRFSource
from lightning_nerf.ops.random import make_key
from tests.data.numbered import numbered_scene
from tests.data.test_blender import H, W, set_in_frame, write_split

SPLITS = ("train", "val", "test")


def time_of(i: int) -> float:
    """Neither sorted, nor from 0 to 1, nor at even distances: nothing that could be taken for i / (n - 1)."""
    return ((i * 5) % 9) ** 2 / 4 - 3.5


def with_times(content: dict[str, Any]) -> None:
    for i, frame in enumerate(content["frames"]):
        frame["time"] = time_of(i)


def timed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Times in all frames, then the change."""

    def both(content: dict[str, Any]) -> Any:
        with_times(content)
        return change(content)

    return both


def without_times(*frames: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: [content["frames"][i].pop("time") for i in frames] and None


def masked(content: dict[str, Any]) -> None:
    with_times(content)
    content["frames"][4]["mask_path"] = "train/mask.png"


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, (9, 4, 7)),
        ({"n_train": 4, "n_val": 3, "n_test": 2}, (4, 3, 2)),
        ({"val_every": 2, "test_every": 3}, (9, 2, 3)),
        ({"holdout_every": 4}, (6, 3, 7)),
        ({"holdout_every": 2, "n_train": 3, "n_val": 2}, (3, 2, 7)),
        ({"downscale": 2}, (9, 4, 7)),
        ({"train_split": "val", "val_split": "train"}, (4, 9, 7)),
    ],
)
def test_a_view_keeps_its_time_whatever_views_are_chosen(
    tmp_path: Path, options: dict[str, Any], counts: tuple[int, ...]
) -> None:
    write_split(tmp_path, "train", 9, change=masked)
    iio.imwrite(tmp_path / "train" / "mask.png", np.tri(H, W, dtype=np.uint8) * 255)
    for split, n in (("val", 4), ("test", 7)):
        write_split(tmp_path, split, n, change=with_times)
    data = DNeRFData(tmp_path, **options)
    for split, count in zip(SPLITS, counts, strict=True):
        scene = data.scene(split)
        assert scene.n_views == count
        assert scene.cameras.times is not None
        assert scene.cameras.times.tolist() == [time_of(int(name[2:])) for name in scene.names]
        for i in range(count):
            times = image_rays(scene.cameras, i).times
            assert times is not None
            assert times.unique().tolist() == [scene.cameras.times[i].item()]
    train = data.scene("train").cameras.times
    rays = data.draw(make_key(0), 500).rays
    assert train is not None
    assert rays.times is not None
    assert rays.cameras is not None
    assert len(rays.times.unique()) == counts[0]
    assert torch.equal(rays.times, train[rays.cameras.long()])
    assert data.time_range() == (float(train.min()), float(train.max()))


def test_a_skipped_frame_takes_its_time_along(tmp_path: Path) -> None:
    write_split(tmp_path, n=5, change=with_times)
    (tmp_path / "train" / "r_1.png").unlink()
    with pytest.warns(UserWarning, match="skipped 1 of 5 frames"):
        times = DNeRFData(tmp_path).scene("train").cameras.times
    assert times is not None
    assert times.tolist() == [time_of(i) for i in (0, 2, 3, 4)]


@pytest.mark.parametrize("lists", [True, False])
def test_the_splits_of_one_file_have_its_times(tmp_path: Path, lists: bool) -> None:
    write_split(tmp_path, n=9, change=with_times)
    content = json.loads((tmp_path / "transforms_train.json").read_text())
    if lists:
        content |= {"train_filenames": ["train/r_8", "train/r_3"], "test_filenames": ["train/r_5", "train/r_0"]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    (tmp_path / "transforms_train.json").unlink()
    data = DNeRFData(tmp_path)
    for split, n in (("train", 2 if lists else 7), ("test", 2)):
        scene = data.scene(split)
        assert scene.cameras.times is not None
        assert scene.n_views == n
        assert scene.cameras.times.tolist() == [time_of(int(name[2:])) for name in scene.names]


def at_times(*times: float) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        for frame, time in zip(content["frames"], times, strict=True):
            frame["time"] = time

    return change


@pytest.mark.parametrize(
    "times", [(1.7e9, 1.7e9 + 0.5, 1.7e9 + 60), (2**60, 2**60, 2**60 + 1), (-3e38, 0.0, 3e38), (0.0, 0.0, 1e-44)]
)
def test_times_that_float32_cannot_tell_apart_are_refused(tmp_path: Path, times: tuple[float, ...]) -> None:
    write_split(tmp_path, change=at_times(*times))
    message = r"transforms_train.json: 'time' goes from .* to .*; subtract the first time from all, or scale them"
    with pytest.raises(BadArgument, match=message):
        DNeRFData(tmp_path).scene("train")
    with pytest.warns(UserWarning, match=message):
        BlenderData(tmp_path).scene("train")


@pytest.mark.parametrize("times", [(1.7e9,) * 3, (1e6, 1e6 + 50, 1e6 + 70), (0.3, 0.3 + 1e-4, 0.31), (1e30, 2e30, 3e30)])
def test_large_times_are_taken(tmp_path: Path, times: tuple[float, ...]) -> None:
    write_split(tmp_path, change=at_times(*times))
    cameras = DNeRFData(tmp_path).scene("train").cameras
    assert cameras.times is not None
    assert cameras.times.tolist() == torch.tensor(times).tolist()


FOREIGN = [
    ((0.0, 0.25, 0.5, 120.0, 0.75, 1.0), r"between 1 and 120, 476 times .* is the time of frame 3, 120, in another unit"),
    ((0.0, 0.25, -50.0, 0.5, -60.0, 0.75, 1.0), r"between -50 and 0, .* is the time of frame 2 and 1 more, -50, in"),
    ((0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 30.0), r"between 0.3 and 30, .* is the time of frame 7, 30, in another unit"),
]
USUAL = [
    (0.0, 0.25, 0.5, 0.75, 1.0),
    (0.0, 0.1, 0.2, 1.0),  # sparse, not foreign
    (0.0, 1e-3, 2e-3, 3e-3, 0.4, 0.7, 1.0),  # no gap is half of all
    (0.0, 100.0),
    (7.0,) * 4,
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("times", "message"), FOREIGN)
def test_times_far_from_all_others_are_said(tmp_path: Path, times: tuple[float, ...], message: str, split: str) -> None:
    for each in SPLITS:
        write_split(tmp_path, each, len(times), change=at_times(*times) if each == split else with_times)
    with pytest.warns(UserWarning, match=rf"transforms_{split}.json: no frame has a 'time' {message}") as said:
        DNeRFData(tmp_path).setup("fit")
    assert len(said) == 1


@pytest.mark.parametrize("times", USUAL)
def test_usual_times_are_taken_in_silence(tmp_path: Path, times: tuple[float, ...]) -> None:
    write_split(tmp_path, n=len(times), change=at_times(*times))
    DNeRFData(tmp_path).scene("train")  # a warning would fail the test


NAN = float("nan")
NONE = r"expected 'time' in every frame, got none in frame "
SOME = r"expected 'time' in all frames or in none, got none in frame "
ADVICE = "; give each the moment when its picture was taken, or "
MALFORMED = r"frame 1 \(./train/r_1\): expected a finite number for 'time', got "


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DNeRFData, lambda c: None, NONE + r"0 \(./train/r_0\) and 2 more of 3 frames" + ADVICE + "read .* BlenderData$"),
        (DNeRFData, timed(without_times(1)), NONE + r"1 \(./train/r_1\)" + ADVICE + "read a scene that stands still"),
        (DNeRFData, timed(without_times(0, 2)), NONE + r"0 \(./train/r_0\) and 1 more of 3 frames;"),
        (DNeRFData, timed(set_in_frame(2, time=None)), NONE + r"2 \(./train/r_2\);"),
        (DNeRFData, timed(lambda c: c["frames"][1].pop("time") and c["frames"][1].update(file_path="gone")), NONE + "1"),
        (BlenderData, timed(without_times(1)), SOME + r"1 \(./train/r_1\)" + ADVICE + "remove it from all$"),
        (BlenderData, timed(without_times(1, 2)), SOME + r"1 \(./train/r_1\) and 1 more of 3 frames;"),
        (BlenderData, set_in_frame(1, time=0.5), SOME + r"0 \(./train/r_0\) and 1 more of 3 frames;"),
        *(
            (kind, timed(set_in_frame(1, time=bad)), MALFORMED)
            for kind in (DNeRFData, BlenderData)
            for bad in (NAN, float("inf"), 1e39, "noon", True, [0.5])
        ),
    ],
)
def test_a_time_that_is_missing_or_malformed_is_refused_and_the_frame_named(
    tmp_path: Path, kind: type[BlenderData], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    write_split(tmp_path, change=change)
    with pytest.raises(ValueError, match=f"transforms_train.json: {message}"):
        kind(tmp_path).setup("fit")


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_times(1), NONE + r"1 \(./{split}/r_1\);"),
        (set_in_frame(1, time="noon"), r"frame 1 \(./{split}/r_1\): expected a finite number for 'time', got 'noon'"),
        (set_in_frame(2, transform_matrix=[]), r"frame 2 \(./{split}/r_2\): expected 'transform_matrix' to be"),
    ],
)
def test_a_fit_looks_at_the_files_of_all_splits_and_at_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    for each in SPLITS:
        write_split(tmp_path, each, change=timed(change) if each == split else with_times)
    monkeypatch.setattr("lightning_nerf.data.views.open_pictures", lambda *_: pytest.fail("reads pictures"))
    with pytest.raises(ValueError, match=f"transforms_{split}.json: {message.format(split=split)}"):
        DNeRFData(tmp_path).setup("fit")


def test_a_fit_needs_no_pictures_of_test_views(tmp_path: Path) -> None:
    for split in SPLITS:
        write_split(tmp_path, split, change=with_times)
    shutil.rmtree(tmp_path / "test")
    data = DNeRFData(tmp_path)
    data.setup("fit")
    assert data.source.times("test") is None
    assert data.source.times("train") == [time_of(i) for i in range(3)]
    with pytest.raises(FileNotFoundError, match=r"transforms_test\.json: none of the files"):
        data.setup("test")


def renamed(old: str, new: str, *frames: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for i in frames:
            content["frames"][i][new] = content["frames"][i].pop(old)

    return change


NEAR = [
    ("time", "tiem", 1, NONE + r"1 \(./train/r_1\); frame 1 has 'tiem'; give each"),
    ("time", "times", 0, NONE + r"0 \(./train/r_0\); frame 0 has 'times'; give each"),
    ("time", "Time", 0, NONE + r"0 \(./train/r_0\); frame 0 has 'Time'; give each"),
    ("time", "timestamp", 2, NONE + r"2 \(./train/r_2\); frame 2 has 'timestamp'; give each"),
    ("time", "t", 2, NONE + r"2 \(./train/r_2\); frame 2 has 't'; give each"),
    ("time", "note", 2, NONE + r"2 \(./train/r_2\); give each"),
    ("transform_matrix", "transform_matrx", 1, r".*'transform_matrix' to be 4x4 or 3x4, got None; frame 1 has 'transform_"),
]


@pytest.mark.parametrize(("key", "written", "frame", "message"), NEAR)
def test_a_key_like_the_one_that_is_missing_is_named(
    tmp_path: Path, key: str, written: str, frame: int, message: str
) -> None:
    write_split(tmp_path, change=timed(renamed(key, written, frame)))
    with pytest.raises(BadArgument, match=f"transforms_train.json: {message}"):
        DNeRFData(tmp_path).setup("fit")


@pytest.mark.parametrize("split", SPLITS)
def test_times_are_needed_in_every_split(tmp_path: Path, split: str) -> None:
    for each in SPLITS:
        write_split(tmp_path, each, change=None if each == split else with_times)
    data = DNeRFData(tmp_path)
    with pytest.raises(ValueError, match=f"transforms_{split}.json: {NONE}"):
        data.setup("test" if split == "test" else "fit")


@pytest.mark.parametrize("named", [True, False])
def test_a_camera_file_has_times_in_all_frames_or_in_none(tmp_path: Path, named: bool) -> None:
    write_split(tmp_path, change=timed(without_times(2)))
    path = tmp_path / "transforms_train.json"
    content = json.loads(path.read_text())
    if not named:
        for frame in content["frames"]:
            del frame["file_path"]
        path.write_text(json.dumps({**content, "w": W, "h": H}))
    with pytest.raises(ValueError, match=SOME + (r"2 \(./train/r_2\);" if named else "2;")):
        read_cameras(path, numbered_scene().cameras)


def test_a_camera_file_whose_times_do_not_count_may_have_any(tmp_path: Path) -> None:
    path = tmp_path / "transforms_train.json"
    write_split(tmp_path, change=timed(renamed("time", "tiem", 1)))
    with pytest.raises(BadArgument, match=r"got none in frame 1 \(./train/r_1\); frame 1 has 'tiem'; give each"):
        read_cameras(path, numbered_scene().cameras)
    for i, change in enumerate((renamed("time", "tiem", 1), set_in_frame(0, time="noon"), lambda c: None)):
        write_split(tmp_path / str(i), change=timed(change))
        path = tmp_path / str(i) / "transforms_train.json"
        assert read_cameras(path, numbered_scene().cameras, reads_times=False).times is None


def test_a_scene_without_validation_views_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_split(tmp_path, split, change=with_times)
    data = DNeRFData(tmp_path)
    data.setup()
    assert data.scene("val").n_views == 0


def test_the_data_module_is_blender_data_with_another_source(tmp_path: Path) -> None:
    write_split(tmp_path, change=with_times)
    data = DNeRFData(tmp_path, downscale=2, n_train=2)
    assert isinstance(data, BlenderData)
    assert type(data.source) is DNeRFSource
    assert (data.background, data.eval_background) == ("white", "white")
    assert data.scene_box.aabb.tolist() == [[-1.5] * 3, [1.5] * 3]
    again = build(described(data), NeRFDataModule)
    assert type(again) is DNeRFData
    assert isinstance(again.source, DNeRFSource)
    assert again.source.downscale == 2
    theirs = NeRFDataModule(DNeRFSource(tmp_path, downscale=2, n_train=2)).scene("train")
    for scene in (again.scene("train"), theirs):
        assert torch.equal(scene.images.colors, data.scene("train").images.colors)


LEGO = Path(os.environ.get("LIGHTNING_NERF_DATA", "/nonexistent")) / "dnerf" / "lego"


@pytest.mark.skipif(not LEGO.is_dir(), reason="no $LIGHTNING_NERF_DATA/dnerf/lego")
def test_lego() -> None:
    data = DNeRFData(LEGO, downscale=16)
    assert [data.scene(split).n_views for split in SPLITS] == [50, 11, 20]
    assert data.scene("train").cameras.size.tolist() == [[50, 50]] * 50
    assert data.scene_box.aabb.tolist() == [[-1.5] * 3, [1.5] * 3]
    assert data.time_range() == (0.0, 1.0)
    for split in SPLITS:
        frames = json.loads((LEGO / f"transforms_{split}.json").read_text())["frames"]
        times = data.scene(split).cameras.times
        assert times is not None
        assert times.tolist() == torch.tensor([frame["time"] for frame in frames]).tolist()
