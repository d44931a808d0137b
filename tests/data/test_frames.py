from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import frames as frames_module
from lightning_nerf.data import json_file
from lightning_nerf.data.frames import Transforms, unique_names

W, H = 80, 60
POSES = [[*pose.tolist(), [0, 0, 0, 1]] for pose in spiral_poses(3, 4.0, (-10.0, 60.0))]


def focal(angle: float, side: int) -> float:
    return 0.5 * side / math.tan(0.5 * angle)


def angle(focal_length: float, side: float) -> float:
    """As colmap2nerf writes it."""
    return math.atan(side / (focal_length * 2)) * 2


def write(root: Path, file: dict[str, Any], *frames: dict[str, Any], n: int = 1) -> Path:
    """A camera file whose pictures exist (they are empty: only pixels of them are never read here)."""
    entries = [{"file_path": f"r_{i}.png", "transform_matrix": POSES[i]} for i in range(max(n, len(frames)))]
    for entry, values in zip(entries, frames, strict=False):
        entry.update(values)
    for i in range(len(entries)):
        (root / f"r_{i}.png").touch()
    path = root / "transforms.json"
    path.write_text(json.dumps({**file, "frames": entries}))
    return path


def intrinsics(path: Path, frame: int = 0, width: int = W, height: int = H) -> list[float]:
    transforms = Transforms(path)
    return transforms.intrinsics(transforms.frames[frame], width, height)


COLMAP2NERF = {
    "camera_angle_x": angle(70.0, W),
    "camera_angle_y": angle(71.0, H),
    "fl_x": 70.0,
    "fl_y": 71.0,
    "k1": 0,
    "k2": 0,
    "p1": 0,
    "p2": 0,
    "is_fisheye": False,
    "cx": 39.0,
    "cy": 31.0,
    "w": W,
    "h": H,
    "aabb_scale": 4,
}


@pytest.mark.parametrize(
    ("file", "frame", "expected"),
    [
        ({"camera_angle_x": 0.7}, {}, [focal(0.7, W), focal(0.7, W), W / 2, H / 2]),
        ({"camera_angle_y": 0.7}, {}, [focal(0.7, H), focal(0.7, H), W / 2, H / 2]),
        ({"camera_angle_x": 0.7, "camera_angle_y": 0.5}, {}, [focal(0.7, W), focal(0.5, H), W / 2, H / 2]),
        (COLMAP2NERF, {}, [70.0, 71.0, 39.0, 31.0]),
        ({"fl_y": 50.0}, {}, [50.0, 50.0, W / 2, H / 2]),
        ({"camera_angle_x": 0.7, "fl_y": 50.0}, {}, [focal(0.7, W), 50.0, W / 2, H / 2]),
        ({}, {"fl_x": 90.0}, [90.0, 90.0, W / 2, H / 2]),
        ({}, {"fl_x": 90.0, "fl_y": 91.0, "cx": 1.0, "cy": 2.0}, [90.0, 91.0, 1.0, 2.0]),
        ({}, {"camera_angle_x": 0.7}, [focal(0.7, W), focal(0.7, W), W / 2, H / 2]),
        ({"fl_x": 50.0}, {"camera_angle_x": 0.7}, [focal(0.7, W), focal(0.7, W), W / 2, H / 2]),
        ({"fl_x": 50.0, "fl_y": 51.0}, {"fl_x": 90.0}, [90.0, 90.0, W / 2, H / 2]),
        (COLMAP2NERF, {"fl_x": 90.0}, [90.0, 90.0, 39.0, 31.0]),
        (COLMAP2NERF, {"cx": 3.0}, [70.0, 71.0, 3.0, 31.0]),
        (COLMAP2NERF, {"camera_angle_y": 0.5}, [focal(0.5, H), focal(0.5, H), 39.0, 31.0]),
        ({"fl_x": 50.0, "cx": None, "w": None}, {"fl_x": None}, [50.0, 50.0, W / 2, H / 2]),
        # A crop's principal point may lie outside of it.
        ({"fl_x": 50.0, "cx": 0.0, "cy": -20.5}, {}, [50.0, 50.0, 0.0, -20.5]),
        # Pixels are those of a picture of w x h.
        ({"fl_x": 50.0, "cx": 30.0, "w": 2 * W, "h": 2 * H}, {}, [25.0, 25.0, 15.0, H / 2]),
        ({"fl_x": 50.0, "cy": 30.0, "h": 2 * H}, {}, [25.0, 25.0, W / 2, 15.0]),
        ({"fl_x": 50.0, "w": 2 * W, "h": 2 * H}, {"w": W / 2, "h": H / 2}, [25.0, 25.0, W / 2, H / 2]),
        ({"fl_x": 50.0, "w": 2 * W, "h": 2 * H}, {"fl_x": 50.0, "w": W / 2, "h": H / 2}, [100.0, 100.0, W / 2, H / 2]),
        ({"fl_x": 50.0}, {"w": 2 * W, "h": 2 * H}, [25.0, 25.0, W / 2, H / 2]),
        ({"camera_angle_x": 0.7, "w": 2 * W, "h": 2 * H}, {}, [focal(0.7, W), focal(0.7, W), W / 2, H / 2]),
        # Sides that were rounded to whole pixels: 80 x 60 of 643 x 485 by 8.
        ({"fl_x": 643.0, "fl_y": 485.0, "w": 643, "h": 485}, {}, [80.0, 60.0, W / 2, H / 2]),
        ({"camera_model": "OPENCV", "fl_x": 50.0}, {"camera_model": "pinhole"}, [50.0, 50.0, W / 2, H / 2]),
    ],
)
def test_a_frame_counts_before_the_file_and_pixels_before_angles(
    tmp_path: Path, file: dict[str, Any], frame: dict[str, Any], expected: list[float]
) -> None:
    assert intrinsics(write(tmp_path, file, frame)) == pytest.approx(expected)


def test_frames_have_cameras_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, {"fl_x": 50.0, "w": W, "h": H}, {}, {"fl_x": 90.0, "w": H, "h": W}, {"cx": 1.0})
    transforms = Transforms(path)
    assert [transforms.size(frame) for frame in transforms.frames] == [(W, H), (H, W), (W, H)]
    assert intrinsics(path, 0) == [50.0, 50.0, W / 2, H / 2]
    assert intrinsics(path, 1, H, W) == [90.0, 90.0, H / 2, W / 2]
    assert intrinsics(path, 2) == [50.0, 50.0, 1.0, H / 2]
    assert Transforms(write(tmp_path, {"fl_x": 50.0, "w": W})).size(transforms.frames[0]) is None


def test_what_colmap2nerf_wrote_of_a_phone_is_no_contradiction(tmp_path: Path) -> None:
    """The figures of a public capture."""
    written = {"camera_angle_x": 0.7481849417937728, "camera_angle_y": 1.2193576119562444, "fl_x": 1375.52}
    written |= {"fl_y": 1374.49, "cx": 554.558, "cy": 965.268, "w": 1080.0, "h": 1920.0}
    path = write(tmp_path, written)
    assert intrinsics(path, 0, 1080, 1920) == [1375.52, 1374.49, 554.558, 965.268]
    assert intrinsics(path, 0, 135, 240) == pytest.approx([1375.52 / 8, 1374.49 / 8, 554.558 / 8, 965.268 / 8])


@pytest.mark.parametrize(
    ("file", "frame", "message"),
    [
        ({**COLMAP2NERF, "fl_x": 80.0}, {}, r"transforms.json: fl_x=80 and camera_angle_x=1.03\d* contradict each other"),
        ({**COLMAP2NERF, "camera_angle_y": 1.2}, {}, r"transforms.json: fl_y=71 and camera_angle_y=1.2 contradict"),
        ({}, {"fl_x": 80.0, "camera_angle_x": 0.7}, r"frame 0 \(r_0.png\): fl_x=80 and camera_angle_x=0.7 contradict"),
        # Angles beside the pixels of pictures that were shrunk later, whose size the file does not state.
        ({"fl_x": 140.0, "camera_angle_x": angle(140.0, 2 * W)}, {}, "or state the w and h that fl_x and fl_y belong to"),
        ({**COLMAP2NERF, "w": H, "h": W}, {}, "w=60, h=80, but the picture has 80x60 pixels: w and h are swapped, or the"),
        ({"camera_angle_x": 0.7, "w": H, "h": W}, {}, "w and h are swapped, or the picture lies on its side .an EXIF"),
        ({"fl_x": 50.0}, {"w": H / 2, "h": W / 2}, r"frame 0 \(r_0.png\): w=30, h=40, but .* 80x60 pixels: w and h are sw"),
        ({"fl_x": 50.0, "w": W, "h": 2 * H}, {}, "w=80, h=120, but the picture has 80x60 pixels, which is no scale of it"),
        ({"fl_x": 50.0, "w": 0.2, "h": 1}, {}, "expected w from 1 to 100000 pixels, got 0.2"),
        ({"fl_x": 50.0, "w": 1e9, "h": 1}, {}, "expected w from 1 to 100000 pixels, got 1000000000.0"),
        ({"fl_x": 0.0}, {}, "expected a positive number for fl_x, got 0.0"),
        ({"fl_x": True}, {}, "expected a positive number for fl_x, got True"),
        ({"fl_x": 10**400}, {}, "expected a positive number for fl_x, got 1000000"),
        ({"fl_x": 5.0, "cx": "middle"}, {}, "expected a number for cx, got 'middle'"),
        ({"fl_x": 5.0}, {"fl_y": -1}, r"frame 0 \(r_0.png\): expected a positive number for fl_y, got -1"),
        ({}, {"camera_angle_y": 3.2}, r"frame 0 \(r_0.png\): expected 0 < camera_angle_y < pi .radians., got 3.2"),
        ({"fl_x": 1e-30}, {}, "expected a field of view above 1e-6 radians and below 180 degrees, got fx=1e-30"),
        ({"fl_x": 5.0, "cx": 1e30}, {}, "expected a field of view .* below 180 degrees, got .* cx=1e.30"),
        ({"camera_angle_x": 1e-300}, {}, "expected a field of view above 1e-6 radians .*, got fx=8e.301"),
        ({}, {}, "transforms.json: expected camera_angle_x .radians. or fl_x .pixels."),
    ],
)
def test_intrinsics_that_make_no_sense_are_named(
    tmp_path: Path, file: dict[str, Any], frame: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        intrinsics(write(tmp_path, file, frame))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scope", ["file", "frame"])
@pytest.mark.parametrize(
    "lens",
    [
        {"camera_model": "OPENCV_FISHEYE"},
        {"camera_model": "EQUIRECTANGULAR"},
        {"camera_model": "THIN_PRISM_FISHEYE"},
        {"camera_model": 5},
        {"is_fisheye": True},
        {"equirectangular": True},
        {"ftheta_p0": 0.1},
    ],
)
def test_cameras_that_are_no_pinholes_are_refused_by_name(tmp_path: Path, scope: str, lens: dict[str, Any]) -> None:
    path = write(tmp_path, {"fl_x": 50.0, **(lens if scope == "file" else {})}, lens if scope == "frame" else {})
    ((name, value),) = lens.items()
    where = "transforms.json" if scope == "file" else r"frame 0 \(r_0.png\)"
    for cameras_only in (False, True):
        with pytest.raises(ValueError, match=f"{where if not cameras_only else ''}.*: {name}={value!r} is not supported"):
            Transforms(path, cameras_only)


@pytest.mark.parametrize("scope", ["file", "frame"])
@pytest.mark.parametrize(("name", "value"), [("k1", 0.1), ("k4", -1e-3), ("p2", 1), ("distortion_params", [0, 0.1])])
def test_lens_distortion_of_a_frame_is_not_ignored_silently(tmp_path: Path, scope: str, name: str, value: float) -> None:
    stated = {name: value}
    path = write(tmp_path, {"fl_x": 5.0, **(stated if scope == "file" else {})}, {}, stated if scope == "frame" else {})
    with pytest.warns(UserWarning, match="transforms.json: lens distortion .* is not applied") as caught:
        Transforms(path)
    assert len(caught) == 1


def test_no_distortion_is_none(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Transforms(write(tmp_path, {**COLMAP2NERF, "distortion_params": [0, 0.0]}, {"k1": 0.0, "k2": None}))


def transposed(matrix: list[list[float]]) -> list[list[float]]:
    return torch.tensor(matrix).T.tolist()


def scaled(matrix: list[list[float]], scale: float) -> list[list[float]]:
    return [[x * scale for x in row] for row in matrix[:3]]


def test_scaled_poses_are_poses(tmp_path: Path) -> None:
    for scale in (1e-3, 1e-10, 1e10):
        (frame,) = Transforms(write(tmp_path, {"fl_x": 5.0}, {"transform_matrix": scaled(POSES[0], scale)})).frames
        assert frame.c2w == scaled(POSES[0], scale)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (transposed(POSES[0]), "transform_matrix is transposed: the camera's position is in its last row; swap its rows"),
        ([*POSES[0][:3], [0, 0, 0, 2]], r"expected the last row of transform_matrix to be 0, 0, 0, 1, got \[0, 0, 0, 2\]"),
        ([*POSES[0][:3], [0, 0, 0.5, 1]], r"expected the last row of transform_matrix to be 0, 0, 0, 1"),
        ([[1e-3, 0, 0, 0], [0, 1e-3, 0, 0], [1e-3, 1e-3, 0, 0]], "the rotation in transform_matrix is singular"),
        (scaled(POSES[0], 1e-20), "the rotation in transform_matrix is singular"),
        ([[True] * 4] * 4, "values that are not finite numbers"),
        ([[10**400] * 4] * 4, "values that are not finite numbers"),
    ],
)
def test_matrices_that_are_no_poses_are_named(tmp_path: Path, matrix: list[list[float]], message: str) -> None:
    path = write(tmp_path, {"fl_x": 5.0}, {}, {"transform_matrix": matrix})
    with pytest.raises(ValueError, match=rf"transforms.json: frame 1 \(r_1.png\): .*{message}"):
        Transforms(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_and_encodings(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, {"fl_x": 5.0}, {"file_path": "ö.png"})
    (tmp_path / "ö.png").touch()
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert [frame.image.name for frame in Transforms(path).frames] == ["ö.png"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(100_000), "cannot be read as JSON .nested too deeply.|expected a JSON object"),
        ('{"frames": ' + nested(900) + "}", "expected a 'file_path', got "),
        ('{"frames": [{"file_path": "a", "transform_matrix": ' + nested(900) + "}]}", "to be 4x4 or 3x4, got"),
        ('{"fl_x": ' + "9" * 5000 + ', "frames": [{}]}', "cannot be read as JSON|expected a positive number for fl_x"),
        ('{"frames": [' + "[]," * 2_000_000 + "[]]}", "expected at most 2000000 lists and objects, got 2000003"),
        (b"\xff\xfe\xff\xff\x00", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ('{"frames": [{"file_path": "\\u0000"}]}', "frame 0 .\\?.: expected 'transform_matrix'"),
        ('{"frames": [{"file_path": "\\ud800\\n\\u001b[31m"}]}', r"frame 0 .\?\?\?\[31m.: expected 'transform_matrix'"),
    ],
)
def test_hostile_files_end_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "transforms.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"transforms.json: .*({message})") as caught:
        Transforms(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_no_depth_of_nesting_ends_in_a_recursion_error(tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    for depth in (*range(1, 900, 100), *range(900, 1000)):
        path.write_text('{"frames": [{"file_path": "a", "transform_matrix": ' + nested(depth) + "}]}")
        with pytest.raises(ValueError, match=r"transforms.json: (frame 0|cannot be read as JSON .nested too deeply)"):
            Transforms(path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    with path.open("wb") as file:
        file.truncate(json_file.MAX_BYTES + 1)  # of holes: it takes no space
    with pytest.raises(ValueError, match=r"transforms.json: expected at most 134217728 bytes, got 134217729"):
        Transforms(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_path": 5}, r"frame 0 \(r_0.png\): expected a path for 'mask_path', got 5"),
        ({"mask_path": ["m.png"]}, r"frame 0 \(r_0.png\): expected a path for 'mask_path', got \['m.png'\]"),
        ({"file_path": 5}, "frame 0: expected a 'file_path', got"),
        ({"file_path": "a" * 5000}, "none of the files of its 1 frames exists, e.g. .*aaa$"),
        ({"file_path": "a/" * 5000}, "none of the files of its 1 frames exists, e.g. .*a/a"),
        ({"mask_path": "a" * 5000}, "none of the files of its 1 frames exists, e.g. .*aaa$"),
        ({"mask_path": "\0"}, "none of the files of its 1 frames exists"),
        ({"file_path": "/dev/zero"}, "none of the files of its 1 frames exists, e.g. /dev/zero"),
        ({"file_path": "../.."}, "none of the files of its 1 frames exists"),
    ],
)
def test_paths_that_are_none_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Transforms(write(tmp_path, {"fl_x": 5.0}, values))
    assert len(str(caught.value)) < 1000


def test_a_long_name_of_the_file_itself_is_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 5000), tmp_path / ("a/" * 5000) / "transforms.json"):
        with pytest.raises(FileNotFoundError, match=r"no file \.\.\..*; its folder has no .json files") as caught:
            Transforms(path)
        assert len(str(caught.value)) < 1000


def test_a_folder_of_many_files_is_not_listed_whole(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02d}.json").touch()
    with pytest.raises(FileNotFoundError, match=r"its folder has 00.json, .*, 09.json and 20 more$"):
        Transforms(tmp_path / "transforms.json")


def test_many_frames_are_read_in_seconds_and_too_many_refused_with_their_count(tmp_path: Path) -> None:
    frame = json.dumps({"file_path": "r_0.png", "transform_matrix": POSES[0]})
    (tmp_path / "r_0.png").touch()
    path = tmp_path / "transforms.json"
    n = 10_000
    path.write_text('{"fl_x": 5.0, "frames": [' + ", ".join([frame] * n) + "]}")
    begin = time.process_time()
    assert len(Transforms(path).frames) == n
    assert time.process_time() - begin < 3  # 0.2 s on an idle core
    assert frames_module.MAX_FRAMES == 100_000
    path.write_text('{"frames": [' + ", ".join(['{"transform_matrix": 0}'] * 1_000_000) + "]}")
    begin = time.process_time()
    with pytest.raises(ValueError, match="expected at most 100000 times 'transform_matrix', got 1000000"):
        Transforms(path)
    assert time.process_time() - begin < 3


NAMES: dict[str, tuple[list[str], list[str]]] = {
    "stems": (["train/r_0.png", "train/r_1.png"], ["r_0", "r_1"]),
    "dots": (["train/r_0.5.png", "r_0.25.png"], ["r_0.5", "r_0.25"]),
    "folders": (["a/r.png", "b/r.png"], ["a_r", "b_r"]),
    "suffixes": (["a.png", "a.jpg"], ["a_png", "a_jpg"]),
    "suffixes in folders": (["x/a.png", "x/a.jpg", "b.png"], ["x_a_png", "x_a_jpg", "b_png"]),
    "one picture twice": (["a.png", "b.png", "a.png", "a.png"], ["a", "b", "a_2", "a_3"]),
    "a number that is taken": (["a.png", "a.png", "a_2.png", "a.png"], ["a", "a_3", "a_2", "a_4"]),
    "letters' case": (["a/r.png", "b/R.png"], ["a_r", "b_R"]),
    "letters' case of one folder": (["r.png", "R.png"], ["r_png", "R_png_2"]),
    "underscores": (["a/b_c.png", "a_b/c.png", "x/c.png"], ["a_b_c_png", "a_b_c_png_2", "x_c_png"]),
    "outside": (["../r.png", "r.png", "../../x/r.png"], ["r_png", "r_png_2", "x_r_png"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_unique(case: str) -> None:
    files, expected = NAMES[case]
    names = unique_names([Path("/root", file) for file in files], Path("/root"))
    assert names == expected
    assert len({name.casefold() for name in names}) == len(files)
    assert not any("/" in name for name in names)


def test_one_picture_of_many_frames_is_numbered_in_no_time() -> None:
    names = unique_names([Path("/root/a.png")] * 20_000, Path("/root"))
    assert names[-1] == "a_20000"
