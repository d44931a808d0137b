from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.data.sources import BlenderSource, TransformsSource
from lightning_nerf.data.views import camera_tensors
from tests.data.captures import FOCAL, H, W, world_poses, write_pictures, write_transforms


def each(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: [frame.update(values) for frame in content["frames"]] and None


def read(root: Path, split: str = "test", **options: Any) -> Any:
    return TransformsSource(root, normalize=False, **options).read(split)


def test_one_file_is_split_by_every_kth_existing_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_transforms(tmp_path)
    (root / "images/f_1.png").unlink()
    source = TransformsSource(root, test_every=4)
    with pytest.warns(UserWarning, match="skipped 1 of 9 frames without a file"), caplog.at_level(logging.INFO):
        names = [source.read(split).names for split in ("train", "val", "test")]
    assert names == [["f_2", "f_3", "f_4", "f_6", "f_7", "f_8"], [], ["f_0", "f_5"]]
    assert "every 4th frame by name is tested" in caplog.text


def test_the_scene_is_in_units_of_its_own_and_the_transform_undoes_it(tmp_path: Path) -> None:
    scene, raw = TransformsSource(write_transforms(tmp_path)).read("test"), read(tmp_path)
    torch.testing.assert_close(raw.cameras.c2w, world_poses(9)[[0, 8]], rtol=0, atol=0)
    assert raw.to_world is None
    assert scene.to_world is not None
    positions = scene.cameras.c2w[:, :, 3]
    torch.testing.assert_close(positions.norm(dim=-1), torch.ones(2), rtol=0, atol=1e-3)
    back = positions @ scene.to_world[:3, :3].T + scene.to_world[:3, 3]
    torch.testing.assert_close(back, raw.cameras.c2w[:, :, 3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"n_train": 2}, {"holdout_every": 2}, {"test_every": 3}, {"downscale": 2}])
def test_the_units_do_not_depend_on_which_views_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    root = write_transforms(tmp_path)
    expected = TransformsSource(root).to_world()
    source = TransformsSource(root, **options)
    scene = source.read("test")
    assert torch.equal(source.to_world(), expected)  # type: ignore[arg-type]
    assert torch.equal(scene.to_world, expected.float())  # type: ignore[union-attr, arg-type]


def test_three_files_are_the_splits(tmp_path: Path) -> None:
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        write_transforms(tmp_path, n, name=f"transforms_{split}.json")
    source = TransformsSource(tmp_path)
    assert [source.read(split).n_views for split in ("train", "val", "test")] == [5, 2, 3]
    (tmp_path / "transforms_train.json").unlink()
    assert TransformsSource(tmp_path).read("test").n_views == 3  # a mere test needs no training views


@pytest.mark.parametrize(
    ("keys", "train", "val", "test"),
    [
        (["train", "test", "val", None], "0 3 4 7 8", "2 6", "1 5"),
        (["train", "val"], "0 2 4 6 8", "1 3 5 7", "1 3 5 7"),
        (["training", "eval", "validation"], "0 3 6", "2 5 8", "1 4 7"),
    ],
)
def test_frames_may_say_their_split(
    tmp_path: Path, keys: list[str | None], train: str, val: str, test: str, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: dict[str, Any]) -> None:
        for i, frame in enumerate(content["frames"]):
            if (key := keys[i % len(keys)]) is not None:
                frame["split"] = key

    source = TransformsSource(write_transforms(tmp_path, change=change))
    with caplog.at_level(logging.INFO):
        found = [" ".join(name[2:] for name in source.read(split).names) for split in ("train", "val", "test")]
    assert found == [train, val, test]
    assert "the split of each frame is the one that it states" in caplog.text


def test_a_split_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected split to be train, val or test, got 'holdout'"):
        read(write_transforms(tmp_path, change=each(split="holdout")))


def test_frames_have_lenses_and_intrinsics_of_their_own(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(camera_model="OPENCV", k1=0.1, k2=0.2, p1=0.3, p2=0.4)
        content["frames"][8].update(camera_model="OPENCV_FISHEYE", k1=0.5, K=[[30.0, 0, 7.0], [0, 31.0, 5.0], [0, 0, 1]])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cameras = read(write_transforms(tmp_path, change=change)).cameras
    assert cameras.intrinsics.tolist() == [[FOCAL, FOCAL, W / 2, H / 2], [30, 31, 7, 5]]
    assert [LENS_MODELS[i] for i in cameras.lens_model] == ["opencv", "fisheye"]
    torch.testing.assert_close(cameras.lens[:, :5], torch.tensor([[0.1, 0.2, 0.3, 0.4, 0], [0.5, 0, 0, 0, 0]]))


def test_a_panorama_covers_the_whole_sphere(tmp_path: Path) -> None:
    cameras = read(write_transforms(tmp_path, change=lambda c: c.update(camera_model="EQUIRECTANGULAR"))).cameras
    assert cameras.intrinsics[0].tolist() == pytest.approx([W / (2 * math.pi), H / math.pi, W / 2, H / 2])


@pytest.mark.parametrize("downscale", [1, 2])
def test_a_stated_size_that_the_pictures_do_not_have_scales_the_intrinsics(tmp_path: Path, downscale: int) -> None:
    root = write_transforms(tmp_path, change=lambda c: c.update(w=2 * W, h=2 * H, k1=0.1))
    cameras = read(root, downscale=downscale).cameras
    assert cameras.size[0].tolist() == [W // downscale, H // downscale]
    assert cameras.intrinsics[0].tolist() == [x / 2 / downscale for x in (FOCAL, FOCAL, W / 2, H / 2)]
    assert cameras.lens[0, 0] == np.float32(0.1)


@pytest.mark.parametrize("layout", ["masks folder", "masks folder of COLMAP", "mask_path", "a larger mask"])
def test_masks_are_found(tmp_path: Path, layout: str) -> None:
    mask = np.zeros((H, W), np.uint8)
    mask[:, :4] = 255
    if layout == "a larger mask":
        mask = mask.repeat(2, 0).repeat(2, 1)
    name = {"masks folder of COLMAP": "masks/f_0.png.png", "mask_path": "elsewhere/m.png"}.get(layout, "masks/f_0.png")

    def change(content: dict[str, Any]) -> None:
        if layout == "mask_path":
            content["frames"][0]["mask_path"] = name

    root = write_transforms(tmp_path, change=change)
    (root / name).parent.mkdir()
    iio.imwrite(root / name, mask)
    drawable = read(root).images.drawable
    assert drawable is not None
    first = drawable[drawable < H * W]
    assert sorted(set((first % W).tolist())) == [0, 1, 2, 3]
    assert len(first) == 4 * H
    assert len(drawable) == 4 * H + H * W  # f_8 has no mask
    if layout != "mask_path":
        assert BlenderSource(root).read("test").images.drawable is None or layout == "a larger mask"


@pytest.mark.parametrize(
    "path",
    [
        "/home/someone/capture/images/{}",
        "C:\\Users\\someone\\capture\\images\\{}",
        "../another/{}",
        "images\\{}",
        "/data/photos/{}",
    ],
)
def test_paths_of_another_machine_are_resolved_by_name(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        for i, frame in enumerate(content["frames"]):
            frame["file_path"] = path.format(f"f_{i}.png")

    root = write_transforms(tmp_path / "here", change=change)
    with caplog.at_level(logging.INFO):
        assert read(root).names == ["f_0", "f_8"]
    assert "9 paths do not exist here; took the files of their names" in caplog.text
    with pytest.raises(FileNotFoundError, match="none of the files of its 9 frames exists"):
        BlenderSource(root).read("test")


def test_two_paths_never_become_one_file(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["frames"][0]["file_path"] = "/left/f_3.png"

    with pytest.raises(
        ValueError, match=r"/left/f_3.png does not exist, and the file of its name here, .*images/f_3.png, is"
    ):
        read(write_transforms(tmp_path, change=change))


def test_a_mask_that_is_missing_is_not_looked_for_among_the_pictures(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["frames"][0]["mask_path"] = "/data/masks/f_0.png"

    with pytest.warns(UserWarning, match="skipped 1 of 9 frames without a file, e.g. /data/masks/f_0.png"):
        assert read(write_transforms(tmp_path, change=change)).names == ["f_1"]


@pytest.mark.parametrize("key", ["depth_file_path", "depth_path"])
def test_depths_are_kept_by_their_paths(tmp_path: Path, key: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["frames"][0][key] = "depths/f_0.png"

    root = write_transforms(tmp_path, change=change)
    assert read(root).depth_paths is None  # no such file: none by default
    write_pictures(root / "depths", ["f_0.png"])
    assert read(root).depth_paths == [root / "depths/f_0.png", None]
    assert read(root, "train").depth_paths is None


def test_places_that_instant_ngp_states_have_no_effect(tmp_path: Path) -> None:
    plain = read(write_transforms(tmp_path / "a"))
    given = {"aabb_scale": 16, "scale": 0.3, "offset": [1, 2, 3], "applied_transform": [[0, 1, 0, 9]] * 3}
    other = read(write_transforms(tmp_path / "b", change=lambda c: c.update(given)))
    assert torch.equal(plain.cameras.c2w, other.cameras.c2w)


def test_sizes_that_are_not_stated_are_those_of_the_pictures(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["w"], content["h"]

    source = TransformsSource(write_transforms(tmp_path, change=change))
    assert source.read("test").cameras.size.tolist() == [[W, H]] * 2
    transforms = source._transforms(tmp_path / "transforms.json")
    assert camera_tensors(transforms.frames, transforms.intrinsics, transforms.size)[2].tolist() == [[H, W]] * 9


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0, 0], [0, 1, 0]], "expected K to be 3x3"),
        ([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]], r"expected K to be \[fx, 0, cx\]"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 2]], r"expected K to be \[fx, 0, cx\]"),
        ([[50, 0, 8], [0, 50, 6], [0, 0, 1]], "fl_x=20 and K contradict each other: 50"),
        ([[-20, 0, 8], [0, 20, 6], [0, 0, 1]], "fl_x=20 and K contradict each other"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_named(tmp_path: Path, matrix: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write_transforms(tmp_path, change=lambda c: c.update(K=matrix)))


def test_a_matrix_alone_is_enough(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for name in ("fl_x", "fl_y", "cx", "cy"):
            del content[name]
        content["K"] = [[FOCAL, 0, 7], [0, FOCAL, 5], [0, 0, 1]]

    assert read(write_transforms(tmp_path, change=change)).cameras.intrinsics[0].tolist() == [FOCAL, FOCAL, 7, 5]


def test_a_picture_on_its_side_is_named(tmp_path: Path) -> None:
    root = write_transforms(tmp_path, change=lambda c: c.update(w=H, h=W))
    with pytest.raises(ValueError, match="w and h are swapped, or the picture lies on its side"):
        read(root)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, 1), (3, 2), (8, 3)])
def test_portraits_that_a_phone_stored_on_their_side_have_their_up(tmp_path: Path, orientation: int, turns: int) -> None:
    """Each camera is turned as the phone was, so that the pictures as shown are upright."""

    def change(content: dict[str, Any]) -> None:
        for frame in content["frames"]:
            frame["file_path"] = frame["file_path"].replace("png", "jpg")
            for row in frame["transform_matrix"][:3]:
                for _ in range(turns):  # counterclockwise, which the orientation undoes
                    row[0], row[1] = -row[1], row[0]

    root = write_transforms(tmp_path, change=change)
    for i in range(9):
        picture = Image.new("RGB", (W, H))
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(root / f"images/f_{i}.jpg", exif=exif)
    to_world = TransformsSource(root).to_world()
    assert to_world is not None
    assert (to_world[:3, 2] / to_world[:3, 2].norm()).tolist() == pytest.approx([0, 1, 0], abs=1e-3)


def test_the_file_is_read_once(tmp_path: Path) -> None:
    root = write_transforms(tmp_path)
    source = TransformsSource(root)
    source.box(), source.read("train")
    content = json.loads((root / "transforms.json").read_text())
    content["frames"] = []
    (root / "transforms.json").write_text(json.dumps(content))
    assert source.read("test").n_views == 2
