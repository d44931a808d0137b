"""transforms.json: the pixel that each camera sees a point in is COLMAP's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_nerf.process.options import CAMERA_MODELS
from lightning_nerf.process.sfm import Lens, Model, Pose
from lightning_nerf.process.transforms import intrinsics, write_transforms

PARAMS = {
    "SIMPLE_PINHOLE": (50.0, 31.0, 25.0),
    "PINHOLE": (50.0, 52.0, 31.0, 25.0),
    "SIMPLE_RADIAL": (50.0, 31.0, 25.0, 0.1),
    "RADIAL": (50.0, 31.0, 25.0, 0.1, -0.05),
    "OPENCV": (50.0, 52.0, 31.0, 25.0, 0.1, -0.05, 0.002, 0.003),
    "FULL_OPENCV": (50.0, 52.0, 31.0, 25.0, 0.1, -0.05, 0.002, 0.003, 0.01, 0.02, 0.03, 0.04),
    "OPENCV_FISHEYE": (50.0, 52.0, 31.0, 25.0, 0.1, -0.05, 0.01, 0.02),
    "SIMPLE_RADIAL_FISHEYE": (50.0, 31.0, 25.0, 0.1),
    "RADIAL_FISHEYE": (50.0, 31.0, 25.0, 0.1, -0.05),
}


def turned(angle: float) -> np.ndarray:
    """World to camera [3, 4]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 0.3], [0.0, 1, 0, -0.2], [-s, 0, c, 4.0]])


def project(frame: dict[str, float], c2w: np.ndarray, point: np.ndarray) -> np.ndarray:
    """OpenCV's formulas, on the numbers of the file."""
    x, y, z = (np.linalg.inv(c2w) @ [*point, 1.0])[:3] * (1, -1, -1)
    x, y = x / z, y / z
    k = {name: frame.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")}
    if frame["camera_model"] == "OPENCV_FISHEYE":
        r = np.hypot(x, y)
        t = np.arctan(r)
        scale = t * (1 + k["k1"] * t**2 + k["k2"] * t**4 + k["k3"] * t**6 + k["k4"] * t**8) / r
        x, y = scale * x, scale * y
    else:
        r = x * x + y * y
        radial = (1 + r * (k["k1"] + r * (k["k2"] + r * k["k3"]))) / (1 + r * (k["k4"] + r * (k["k5"] + r * k["k6"])))
        x, y = (
            x * radial + 2 * k["p1"] * x * y + k["p2"] * (r + 2 * x * x),
            y * radial + k["p1"] * (r + 2 * y * y) + 2 * k["p2"] * x * y,
        )
    return np.array([frame["fl_x"] * x + frame["cx"], frame["fl_y"] * y + frame["cy"]])


@pytest.mark.parametrize("name", CAMERA_MODELS)
def test_points_are_seen_where_colmap_sees_them(name: str, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    lens = Lens(name, 64, 48, PARAMS[name])
    w2c, point = turned(0.4), np.array([0.5, -0.3, 0.7])
    write_transforms(tmp_path / "t.json", Model({1: lens}, {"a.png": Pose(1, w2c)}, 0, 0.0), ["a.png", "b.png"])
    content = json.loads((tmp_path / "t.json").read_text())
    (frame,) = content["frames"]
    camera = pycolmap.Camera(model=name, width=64, height=48, params=lens.params)
    expected = camera.img_from_cam(w2c @ [*point, 1.0])
    np.testing.assert_allclose(project(content, np.array(frame["transform_matrix"]), point), expected, atol=1e-9)
    assert (content["w"], content["h"]) == (64, 48)


def test_where_cameras_differ_each_frame_has_its_own(tmp_path: Path) -> None:
    lenses = {key: Lens("SIMPLE_RADIAL", 64, 48, (50.0 + key, 32.0, 24.0, 0.1)) for key in (1, 2)}
    poses = {name: Pose(key, turned(key)) for name, key in (("a.png", 1), ("b.png", 2))}
    write_transforms(tmp_path / "t.json", Model(lenses, poses, 0, 0.0), ["a.png", "b.png"])
    content = json.loads((tmp_path / "t.json").read_text())
    assert "fl_x" not in content
    assert [(frame["fl_x"], frame["fl_y"], frame["k1"]) for frame in content["frames"]] == [(51, 51, 0.1), (52, 52, 0.1)]


def test_every_lens_of_the_command_has_words_for_its_parameters() -> None:
    assert set(PARAMS) == set(CAMERA_MODELS)
    for name, params in PARAMS.items():
        assert {"fl_x", "fl_y", "cx", "cy"} < set(intrinsics(Lens(name, 64, 48, params)))
