from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import BlenderData, NeRFDataModule
from lightning_nerf.data.sources import BlenderSource
from lightning_nerf.ops.random import make_key
from tests.data.test_images import random_picture
from tests.scenes import tiny_module, trainer

H, W, ANGLE = 6, 8, 0.7


def write_split(
    root: Path,
    split: str = "train",
    n: int = 3,
    *,
    suffix: str = ".png",
    named: bool = False,
    channels: int = 4,
    change: Callable[[dict[str, Any]], Any] | None = None,
) -> list[np.ndarray]:
    """A split of n random pictures; ``named``: file_path carries the suffix; ``change`` edits the JSON's content."""
    pictures = [random_picture(H, W, channels, seed=i) for i in range(n)]
    (root / split).mkdir(parents=True)
    frames = []
    for i, (picture, c2w) in enumerate(zip(pictures, spiral_poses(n, 4.0, (-10.0, 60.0)), strict=True)):
        iio.imwrite(root / split / f"r_{i}{suffix}", picture)
        matrix = [*c2w.tolist(), [0, 0, 0, 1]]
        frames.append({"file_path": f"./{split}/r_{i}{suffix if named else ''}", "transform_matrix": matrix})
    content = {"camera_angle_x": ANGLE, "frames": frames}
    changed = change(content) if change else None
    (root / f"transforms_{split}.json").write_text(json.dumps(content if changed is None else changed))
    return pictures


def set_in_frame(i: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["frames"][i].update(values)


def set_in(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(values)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_cameras_and_names_come_as_written(tmp_path: Path, named: bool, channels: int) -> None:
    pictures = write_split(tmp_path, named=named, channels=channels)
    data = BlenderData(tmp_path)
    scene = data.scene("train")
    for i, picture in enumerate(pictures):
        assert np.array_equal(scene.picture(i).numpy(), picture)
    cameras = scene.cameras
    assert cameras.c2w.dtype == torch.float32
    torch.testing.assert_close(cameras.c2w, spiral_poses(3, 4.0, (-10.0, 60.0)))
    focal = 0.5 * W / math.tan(0.5 * ANGLE)
    torch.testing.assert_close(cameras.intrinsics, torch.tensor([[focal, focal, W / 2, H / 2]]).expand(3, 4))
    assert cameras.size.tolist() == [[W, H]] * 3
    assert cameras.bounds is not None
    torch.testing.assert_close(cameras.bounds, torch.tensor([0.05, 1000.0]).expand(3, 2))
    assert cameras.times is None
    assert scene.images.drawable is None
    assert scene.names == ["r_0", "r_1", "r_2"]
    assert data.scene_name == tmp_path.name
    assert data.scene_box.aabb.tolist() == [[-1.5] * 3, [1.5] * 3]
    assert data.scene_box.contraction == "none"


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg"])
def test_jpeg(tmp_path: Path, suffix: str) -> None:
    write_split(tmp_path, suffix=suffix, channels=3)
    assert [BlenderData(tmp_path).scene("train").picture(i).shape for i in range(3)] == [(H, W, 3)] * 3


def test_a_dot_in_a_name_is_no_suffix(tmp_path: Path) -> None:
    write_split(tmp_path, n=1, change=set_in_frame(0, file_path="./train/r_0.5"))
    (tmp_path / "train" / "r_0.png").rename(tmp_path / "train" / "r_0.5.png")
    assert BlenderData(tmp_path).scene("train").names == ["r_0.5"]


def test_times(tmp_path: Path) -> None:
    write_split(tmp_path, change=lambda c: [f.update(time=i / 2) for i, f in enumerate(c["frames"])] and None)
    times = BlenderData(tmp_path).scene("train").cameras.times
    assert times is not None
    assert times.tolist() == [0.0, 0.5, 1.0]


def test_masks_say_what_is_drawn(tmp_path: Path) -> None:
    write_split(tmp_path, change=set_in_frame(1, mask_path="./train/mask"))
    mask = np.zeros((H, W), np.uint8)
    mask[2:4, 3] = 255
    iio.imwrite(tmp_path / "train" / "mask.png", mask)
    data = BlenderData(tmp_path)
    drawable = data.scene("train").images.drawable
    assert drawable is not None
    size = H * W
    expected = [*range(size), size + 2 * W + 3, size + 3 * W + 3, *range(2 * size, 3 * size)]
    assert drawable.tolist() == expected
    cameras = data.draw(make_key(0), 5000).rays.cameras
    assert cameras is not None
    # 2 of 98 pixels: 102 expected, standard deviation 10.
    assert 50 < int((cameras == 1).sum()) < 154


def test_downscaling_keeps_the_rays(tmp_path: Path) -> None:
    """Also where the factor does not divide the size: what is left over is cut off, the principal point stays."""
    write_split(tmp_path, change=set_in_frame(0, mask_path="train/mask.png"))
    iio.imwrite(tmp_path / "train" / "mask.png", np.full((H, W), 255, np.uint8))
    scene = BlenderData(tmp_path, downscale=3).scene("train")
    assert scene.cameras.size.tolist() == [[2, 2]] * 3
    assert scene.picture(2).shape == (2, 2, 4)
    focal = 0.5 * W / math.tan(0.5 * ANGLE) / 3
    torch.testing.assert_close(scene.cameras.intrinsics[0], torch.tensor([focal, focal, W / 6, H / 6]))
    assert scene.images.drawable is not None
    assert scene.images.drawable.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"camera_angle_x": ANGLE, "cx": 3.0, "cy": 2.0}, [0.5 * W / math.tan(0.5 * ANGLE)] * 2 + [3.0, 2.0]),
        ({"fl_x": 10.0}, [10.0, 10.0, W / 2, H / 2]),
        ({"fl_x": 20.0, "fl_y": 30.0, "cx": 7.0, "cy": 5.0, "w": 2 * W, "h": 2 * H}, [10.0, 15.0, 3.5, 2.5]),
    ],
)
def test_intrinsics(tmp_path: Path, values: dict[str, float], expected: list[float]) -> None:
    write_split(tmp_path, change=lambda c: {**values, "frames": c["frames"]})
    torch.testing.assert_close(BlenderData(tmp_path).scene("train").cameras.intrinsics[0], torch.tensor(expected))


def test_splits(tmp_path: Path) -> None:
    for split, n in (("train", 9), ("val", 4), ("test", 7)):
        write_split(tmp_path, split, n)

    def names(split: str, **kwargs: Any) -> str:
        return " ".join(name[2:] for name in BlenderData(tmp_path, **kwargs).scene(split).names)

    assert [len(names(s).split()) for s in ("train", "val", "test")] == [9, 4, 7]
    assert names("test", test_every=3) == "0 3 6"
    assert names("val", val_every=3) == "0 3"
    assert names("val", val_split="test") == "0 1 2 3 4 5 6"
    assert names("train", n_train=3) == "0 3 6"
    assert names("train", n_train=100) == "0 1 2 3 4 5 6 7 8"
    assert names("test", test_every=2, n_test=2) == "0 4"
    assert names("val", holdout_every=4) == "0 4 8"
    assert names("train", holdout_every=4) == "1 2 3 5 6 7"
    assert names("test", holdout_every=4) == "0 1 2 3 4 5 6"


def test_no_validation_file_means_no_validation_views(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_split(tmp_path, split)
    data = BlenderData(tmp_path)
    data.setup("fit")
    assert data.scene("val").n_views == 0
    assert data.scene("val").names == []
    assert len(data.scene("train").names) == 3
    with pytest.raises(
        FileNotFoundError, match=r"transforms_valid.json; its folder has transforms_test.json, transforms_tr"
    ):
        BlenderData(tmp_path, val_split="valid").scene("val")


def test_missing_files_are_counted_in_one_warning(tmp_path: Path) -> None:
    write_split(tmp_path, n=5, change=set_in_frame(2, mask_path="train/gone.png"))
    (tmp_path / "train" / "r_1.png").unlink()
    data = BlenderData(tmp_path)
    with pytest.warns(
        UserWarning, match=r"transforms_train.json: skipped 2 of 5 frames without a file, e.g. .*r_1"
    ) as caught:
        assert data.scene("train").names == ["r_0", "r_3", "r_4"]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.scene("train")  # loaded: no second warning


def test_lens_distortion_is_not_ignored_silently(tmp_path: Path) -> None:
    write_split(tmp_path, change=set_in(k1=0.1))
    with pytest.warns(UserWarning, match="lens distortion"):
        BlenderData(tmp_path).scene("train")


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [1, 2], "expected a JSON object, got"),
        (set_in(frames=[]), "expected a list of frames that is not empty under 'frames'"),
        (set_in(frames={"a": 1}), "expected a list of frames"),
        (lambda c: {"camera_angle_x": 0.7}, "expected a list of frames .* got None"),
        (lambda c: {"frames": c["frames"]}, "expected camera_angle_x .radians. or fl_x"),
        (set_in(camera_angle_x="wide"), "expected a positive number for camera_angle_x, got 'wide'"),
        (set_in(camera_angle_x=NAN), "expected a positive number for camera_angle_x"),
        (set_in(camera_angle_x=40.0), "expected 0 < camera_angle_x < pi .radians., got 40.0"),
        (lambda c: c["frames"].__setitem__(1, "r_1"), "frame 1: expected a 'file_path', got 'r_1'"),
        (lambda c: c["frames"][2].pop("file_path") and None, "frame 2: expected a 'file_path'"),
        (lambda c: c["frames"][2].pop("transform_matrix") and None, "frame 2 .*r_2.: expected 'transform_matrix'"),
        (set_in_frame(0, transform_matrix=[[1, 0], [0, 1]]), "frame 0 .*r_0.: expected 'transform_matrix' to be 4x4"),
        (set_in_frame(1, transform_matrix=[[NAN] * 4] * 4), "frame 1 .*r_1.: .*not finite numbers"),
        (set_in_frame(1, transform_matrix=[["a"] * 4] * 4), "frame 1 .*r_1.: .*not finite numbers"),
        (set_in_frame(1, transform_matrix=[[0.0] * 4] * 4), "frame 1 .*r_1.: the rotation .* singular"),
        (set_in_frame(1, time=0.5), "expected 'time' in all frames or in none"),
        (set_in_frame(1, time="noon"), "frame 1 .*: expected a finite number for 'time', got 'noon'"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    write_split(tmp_path, change=change)
    with pytest.raises(ValueError, match=f"transforms_train.json: {message}"):
        BlenderData(tmp_path).scene("train")


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: no folder .*nowhere"):
        BlenderData(tmp_path / "nowhere").setup("fit")
    with pytest.raises(FileNotFoundError, match=r"transforms_train.json; its folder has no .json files"):
        BlenderData(tmp_path).setup("fit")
    (tmp_path / "transforms_train.json").write_text('{"frames": [')
    with pytest.raises(ValueError, match=r"transforms_train.json: cannot be read as JSON"):
        BlenderData(tmp_path).setup("fit")
    write_split(tmp_path, "test")
    for picture in (tmp_path / "test").iterdir():
        picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the files of its 3 frames exists, e.g. .*r_0"):
        BlenderData(tmp_path).setup("test")


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    write_split(tmp_path)
    iio.imwrite(tmp_path / "train" / "r_1.png", random_picture(H + 1, W, 4))
    assert BlenderData(tmp_path).scene("train").cameras.size[:2].tolist() == [[W, H], [W, H + 1]]  # no fault: any sizes do
    (tmp_path / "train" / "r_1.png").write_text("nonsense")
    with pytest.raises(ValueError, match=r"r_1.png: cannot be read as an image"):
        BlenderData(tmp_path).setup("fit")


def test_masks_must_leave_something(tmp_path: Path) -> None:
    write_split(tmp_path, n=1, change=set_in_frame(0, mask_path="train/mask.png"))
    iio.imwrite(tmp_path / "train" / "mask.png", np.zeros((H, W), np.uint8))
    with pytest.raises(ValueError, match="the masks exclude every pixel of all 1 views"):
        BlenderData(tmp_path).scene("train")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"downscale": 0}, "downscale: expected an integer >= 1, got 0"),
        ({"test_every": 1.5}, "test_every: expected an integer"),
        ({"n_train": 0}, "n_train: expected an integer >= 1, got 0"),
        ({"holdout_every": 1}, "holdout_every: expected an integer >= 2, got 1"),
        ({"train_split": "test"}, "test views are never trained on"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    for kind in (BlenderData, BlenderSource):
        with pytest.raises(ValueError, match=message):
            kind("anywhere", **kwargs)


def test_the_data_module_is_that_of_the_source(tmp_path: Path) -> None:
    for split, n in (("train", 6), ("test", 4)):
        write_split(tmp_path, split, n)
    options: dict[str, Any] = {"holdout_every": 3, "downscale": 2, "test_every": 2, "n_train": 3}
    ours = BlenderData(tmp_path, **options)
    theirs = NeRFDataModule(BlenderSource(tmp_path, **options))
    assert isinstance(ours.source, BlenderSource)
    assert ours.scene_box.aabb.tolist() == theirs.scene_box.aabb.tolist() == [[-1.5] * 3, [1.5] * 3]
    for split in ("train", "val", "test"):
        a, b = ours.scene(split), theirs.scene(split)
        assert a.names == b.names
        assert a.n_views > 0
        for x, y in zip((*a.cameras, *a.images), (*b.cameras, *b.images), strict=True):
            assert (x is None and y is None) or torch.equal(x, y)  # type: ignore[arg-type]


def moved(offset: tuple[float, float, float]) -> Callable[[dict[str, Any]], None]:
    """Cameras and object elsewhere."""

    def change(content: dict[str, Any]) -> None:
        for frame in content["frames"]:
            for row, x in zip(frame["transform_matrix"], offset, strict=False):
                row[3] += x

    return change


def test_a_scene_elsewhere_gets_a_box_that_is_told_and_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    center = (12.8, 13.2, 5.2)
    for split in ("train", "test"):
        write_split(tmp_path, split, 8, change=moved(center))
    data, module = BlenderData(tmp_path), tiny_module()
    with caplog.at_level("INFO"):
        box = data.scene_box.aabb
    torch.testing.assert_close(box.mean(0), torch.tensor(center), atol=1e-3, rtol=0)
    assert caplog.text.count("the cameras look at (12.8, 13.2, 5.2), from about 4 away") == 1
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["field.aabb"], box)
    given = BlenderData(tmp_path, aabb=[[10, 10, 3], [15, 16, 8]])
    assert given.scene_box.aabb.tolist() == [[10, 10, 3], [15, 16, 8]]
    write_split(tmp_path / "origin")
    assert BlenderData(tmp_path / "origin").scene_box.aabb.tolist() == [[-1.5] * 3, [1.5] * 3]


PUBLIC = Path(os.environ.get("LIGHTNING_NERF_DATA", "/nonexistent"))


@pytest.mark.parametrize("scene", ["nerf_synthetic/lego", "nerf_synthetic/chair", "dnerf/lego"])
def test_public_scenes_keep_the_default_box(scene: str) -> None:
    if not (PUBLIC / scene).is_dir():
        pytest.skip(f"no $LIGHTNING_NERF_DATA/{scene}")
    assert BlenderSource(PUBLIC / scene).box().aabb.tolist() == [[-1.5] * 3, [1.5] * 3]


LEGO = PUBLIC / "nerf_synthetic" / "lego"


@pytest.mark.skipif(not LEGO.is_dir(), reason="no $LIGHTNING_NERF_DATA/nerf_synthetic/lego")
def test_lego() -> None:
    data = BlenderData(LEGO, test_every=100, downscale=8, n_train=4)
    cameras, images, _, _ = data.scene("train")
    assert cameras.size.tolist() == [[100, 100]] * 4
    torch.testing.assert_close(cameras.intrinsics[0], torch.tensor([1111.1111, 1111.1111, 400.0, 400.0]) / 8)
    torch.testing.assert_close(cameras.c2w[:, :, 3].norm(dim=-1), torch.full((4,), 4.0311), atol=1e-3, rtol=0)
    assert data.scene("test").names == ["r_0", "r_100"]
    assert 0.1 < float((images.colors[:, 3] > 0).float().mean()) < 0.5
