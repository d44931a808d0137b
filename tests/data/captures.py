"""Made-up captures in the layouts of several tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import LENS_MODELS, Cameras
from lightning_nerf.cameras.poses import look_at, spiral_poses
from tests.data.test_images import random_picture

H, W, FOCAL = 12, 16, 20.0
CENTER = (3.0, -2.0, 5.0)
TILT = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # takes z to y: the files' up is y


def world_poses(n: int) -> Tensor:
    """Cameras [n, 3, 4] that look at CENTER from 4 away, in a world whose up is y."""
    poses = spiral_poses(n, 4.0, (-10.0, 60.0))
    turned = TILT @ poses
    turned[:, :, 3] += torch.tensor(CENTER)
    return turned


def facing_poses(n: int) -> Tensor:
    """Cameras [n, 3, 4] within 0.5 of CENTER that look the same way but for a few degrees, in a world whose up is y."""
    i = torch.arange(n, dtype=torch.float64)
    eyes = torch.stack([0.5 * (2.4 * i).cos(), 0.1 * (1.7 * i).sin(), 0.4 * (2.4 * i).sin()], -1)
    turned = TILT @ look_at(eyes, (0.0, 8.0, 0.3)).float()
    turned[:, :, 3] += torch.tensor(CENTER)
    return turned


def write_pictures(folder: Path, names: Sequence[str], height: int = H, width: int = W) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / name, random_picture(height, width, 3, seed=i))


def write_transforms(
    root: Path, n: int = 9, *, change: Callable[[dict[str, Any]], Any] | None = None, name: str = "transforms.json"
) -> Path:
    """``images/f_0.png``, ... and their cameras, as nerfstudio writes them; ``change`` edits the content."""
    names = [f"images/f_{i}.png" for i in range(n)]
    write_pictures(root, names)
    matrices = [[*pose.tolist(), [0, 0, 0, 1]] for pose in world_poses(n)]
    frames = [{"file_path": path, "transform_matrix": m} for path, m in zip(names, matrices, strict=True)]
    content = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": W / 2, "cy": H / 2, "w": W, "h": H, "frames": frames}
    if change:
        change(content)
    (root / name).write_text(json.dumps(content))
    return root


def write_colmap(
    root: Path,
    n: int = 9,
    *,
    model: str = "PINHOLE",
    params: Sequence[float] = (FOCAL, FOCAL, W / 2, H / 2),
    cameras: int = 1,
    sparse: str = "sparse/0",
    text: bool = False,
    images: str = "images",
    size: tuple[int, int] = (H, W),
    n_posed: int | None = None,
    poses: Callable[[int], Tensor] = world_poses,
    points: Sequence[Sequence[float]] = (),
) -> Path:
    """``f_0.png``, ... in ``images`` and a model of the first ``n_posed``.

    Its points are the given ones, or CENTER and some around it.
    """
    pycolmap = pytest.importorskip("pycolmap")
    names = [f"f_{i}.png" for i in range(n)]
    write_pictures(root / images, names, *size)
    model_ = pycolmap.Reconstruction()
    for key in range(1, cameras + 1):
        model_.add_camera_with_trivial_rig(
            pycolmap.Camera(model=model, width=W, height=H, params=list(params), camera_id=key)
        )
    for i, pose in enumerate(poses(n)[:n_posed].double().numpy()):
        rotation = (pose[:, :3] * np.array([1.0, -1.0, -1.0])).T
        matrix = np.concatenate([rotation, -rotation @ pose[:, 3:]], 1)
        image = pycolmap.Image(name=names[i], camera_id=i % cameras + 1, image_id=i + 1)
        model_.add_image_with_trivial_frame(image, pycolmap.Rigid3d(matrix))
    around = np.array(CENTER) + np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    for point in np.array(points) if points else around:
        model_.add_point3D(point, pycolmap.Track(), np.zeros(3, np.uint8))
    (root / sparse).mkdir(parents=True)
    (model_.write_text if text else model_.write_binary)(str(root / sparse))
    return root


def write_llff(
    root: Path,
    n: int = 9,
    *,
    images: str = "images",
    scale: int = 1,
    columns: int = 17,
    poses: Callable[[int], Tensor] = world_poses,
) -> Path:
    """Pictures that are ``scale`` times smaller than the ``poses_bounds.npy`` beside them says."""
    write_pictures(root / images, [f"f_{i}.png" for i in range(n)])
    c2w = poses(n).double().numpy()
    down_right_back = np.stack([-c2w[:, :, 1], c2w[:, :, 0], c2w[:, :, 2], c2w[:, :, 3]], 2)
    camera = np.broadcast_to(np.array([H, W, FOCAL])[None, :, None] * scale, (n, 3, 1))
    rows = np.concatenate([np.concatenate([down_right_back, camera], 2).reshape(n, 15), np.tile([2.0, 6.0], (n, 1))], 1)
    np.save(root / "poses_bounds.npy", rows[:, :columns])
    return root


def project(cameras: Cameras, view: int, points: Tensor) -> Tensor:
    """Pixels [P, 2] of points [P, 3] in the cameras' world, by OpenCV's formulas."""
    c2w = cameras.c2w[view].double()
    right, up, back = ((points.double() - c2w[:, 3]) @ c2w[:, :3]).unbind(-1)
    x, y = right / -back, up / back
    if cameras.lens_model is not None and cameras.lens is not None:
        name = LENS_MODELS[int(cameras.lens_model[view])]
        k = cameras.lens[view].double()
        if name == "opencv":
            r = x * x + y * y
            factor = (1 + k[0] * r + k[1] * r**2 + k[4] * r**3) / (1 + k[5] * r + k[6] * r**2 + k[7] * r**3)
            x, y = (
                x * factor + 2 * k[2] * x * y + k[3] * (r + 2 * x * x),
                y * factor + k[2] * (r + 2 * y * y) + 2 * k[3] * x * y,
            )
        elif name == "fisheye":
            length = (x * x + y * y).sqrt().clamp(min=1e-12)
            theta = length.atan()
            t = theta**2
            bent = theta * (1 + k[0] * t + k[1] * t**2 + k[2] * t**3 + k[3] * t**4)
            x, y = x * bent / length, y * bent / length
    fx, fy, cx, cy = cameras.intrinsics[view].double()
    return torch.stack([fx * x + cx, fy * y + cy], -1)
