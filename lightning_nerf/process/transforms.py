"""A model as ``transforms.json``, as nerfstudio and instant-ngp have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_nerf.files import whole_file
from lightning_nerf.process.sfm import Lens, Model

POINTS = "sparse_pc.ply"  # nerfstudio's name
# Of each COLMAP model: nerfstudio's name and the names of its parameters; f stands for fl_x and fl_y.
_PERSPECTIVE = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fl_x fl_y cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fl_x fl_y cx cy k1 k2 p1 p2",
    "FULL_OPENCV": "fl_x fl_y cx cy k1 k2 p1 p2 k3 k4 k5 k6",
}
_FISHEYE = {
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "OPENCV_FISHEYE": "fl_x fl_y cx cy k1 k2 k3 k4",
}


def write_transforms(path: Path, model: Model, names: Sequence[str]) -> None:
    """Write the poses of a model, camera to world, x right, y up, looking along -z.

    What all pictures share of the intrinsics stands at the top; where cameras differ, in each frame.

    Args:
        path: the file; pictures lie in ``images`` beside it.
        model: the poses.
        names: all pictures in their order; those without a pose are left out.
    """
    lenses = {key: intrinsics(lens) for key, lens in model.lenses.items()}
    used = {pose.lens for pose in model.poses.values()}
    shared = lenses[used.pop()] if len(used) == 1 else {}
    frames = [
        {
            "file_path": f"images/{name}",
            **({} if shared else lenses[model.poses[name].lens]),
            "transform_matrix": camera_to_world(model.poses[name].world_to_camera).tolist(),
        }
        for name in names
        if name in model.poses
    ]
    with whole_file(path) as file:
        file.write(json.dumps({**shared, "ply_file_path": POINTS, "frames": frames}, indent=2).encode())


def intrinsics(lens: Lens) -> dict[str, float | int | str]:
    """A lens in nerfstudio's words, all distortion coefficients of its kind included."""
    is_fisheye = lens.model in _FISHEYE
    names = (_FISHEYE if is_fisheye else _PERSPECTIVE)[lens.model].split()
    found = dict(zip(names, lens.params, strict=True))
    if "f" in found:
        found["fl_x"] = found["fl_y"] = found.pop("f")
    coefficients = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2")
    return {
        "camera_model": "OPENCV_FISHEYE" if is_fisheye else "OPENCV",
        "w": lens.width,
        "h": lens.height,
        **{name: found[name] for name in ("fl_x", "fl_y", "cx", "cy")},
        **dict.fromkeys(coefficients, 0.0),
        **{name: value for name, value in found.items() if name[0] in "kp"},
    }


def camera_to_world(world_to_camera: np.ndarray) -> np.ndarray:
    """[4, 4] in OpenGL's axes of a [3, 4] in OpenCV's."""
    rotation = world_to_camera[:, :3].T
    pose = np.eye(4)
    pose[:3, :3] = rotation * (1.0, -1.0, -1.0)
    pose[:3, 3] = -rotation @ world_to_camera[:, 3]
    return pose
