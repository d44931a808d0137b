"""Views to render that nobody took: only the size of ``images`` means something, they take no memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.cameras import helix_poses, turntable_poses
from lightning_nerf.data.frames import Transforms
from lightning_nerf.data.views import Views

if TYPE_CHECKING:
    from lightning_nerf.data.base import NeRFDataModule

_STEEPEST = 80.0  # degrees; nearer to the pole a camera that stays upright spins


def orbit(data: NeRFDataModule, n_frames: int, elevation: float = 30.0) -> Views:
    """A full turn around the middle of the scene's box, in even steps: after the last frame comes the first.

    The distance is the training cameras' mean; intrinsics and size are those of the first of them.
    """
    centre, offsets = _training_cameras(data)
    radius = float(offsets.norm(dim=-1).mean())
    return _like_training(data, turntable_poses(n_frames, radius, elevation, target=centre.tolist()))


def spiral(data: NeRFDataModule, n_frames: int, turns: float = 2.0) -> Views:
    """Two turns as of :func:`orbit`, from the elevation of the lowest training camera to that of the highest.

    Elevations end at 80 degrees on either side.
    """
    centre, offsets = _training_cameras(data)
    radius = offsets.norm(dim=-1)
    heights = torch.rad2deg(torch.asin((offsets[:, 2] / radius.clamp(min=1e-6)).clamp(-1, 1))).clamp(-_STEEPEST, _STEEPEST)
    elevations = float(heights.min()), float(heights.max())
    return _like_training(data, helix_poses(n_frames, float(radius.mean()), elevations, turns, target=centre.tolist()))


def from_file(path: Path, data: NeRFDataModule) -> Views:
    """The cameras of a ``transforms.json``; its pictures need not exist.

    The size is the file's ``w`` and ``h``, else that of the training views, which are loaded for that only.

    Raises:
        FileNotFoundError, ValueError: naming the file and the frame.
    """
    transforms = Transforms(path, cameras_only=True)
    size = transforms.size(transforms.frames[0])
    if size is None:
        height, width = data.views("train").images.shape[1:3]
        size = width, height
    frames = transforms.frames
    times = None if frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    intrinsics = torch.tensor([transforms.intrinsics(frame, *size) for frame in frames])
    return Views(blank(len(frames), *size), torch.tensor([f.c2w for f in frames], dtype=torch.float32), intrinsics, times)


def resized(views: Views, width: int, height: int) -> Views:
    """The same cameras with pictures of another size, pixels as square as before.

    The vertical field of view is kept; a wider picture sees more on both sides, a narrower one less.
    """
    old_height, old_width = views.images.shape[1:3]
    fx, fy, cx, cy = views.intrinsics.unbind(-1)
    scale = height / old_height
    intrinsics = torch.stack([fx * scale, fy * scale, width / 2 + (cx - old_width / 2) * scale, cy * scale], -1)
    return views._replace(images=blank(len(views.c2w), width, height), intrinsics=intrinsics, pixels=None)


def cameras_on(views: Views, device: torch.device | str) -> Views:
    """The views on ``device`` but for their pictures, of which only the size goes along."""
    n, height, width, _ = views.images.shape
    times = None if views.times is None else views.times.to(device)
    return Views(blank(n, width, height, device), views.c2w.to(device), views.intrinsics.to(device), times)


def blank(n: int, width: int, height: int, device: torch.device | str | None = None) -> Tensor:
    """[n, height, width, 3] uint8 in one byte."""
    return torch.zeros((), dtype=torch.uint8, device=device).expand(n, height, width, 3)


def box_distances(views: Views, aabb: Tensor, near: float, far: float) -> tuple[float, float]:
    """The least and the greatest distance from any of the cameras to a point of the box, both within [near, far]."""
    eyes = views.c2w[:, :, 3].cpu()
    nearest = (eyes - eyes.clamp(aabb[0], aabb[1])).norm(dim=-1).min()
    farthest = torch.maximum((eyes - aabb[0]).abs(), (eyes - aabb[1]).abs()).norm(dim=-1).max()
    return max(near, float(nearest)), min(far, float(farthest))


def _training_cameras(data: NeRFDataModule) -> tuple[Tensor, Tensor]:
    """The middle of the scene's box [3], and where the training cameras are from there [V, 3]."""
    train = data.views("train")
    if len(train.c2w) == 0:
        raise BadArgument(f"{type(data).__name__} has no training views to take distance and intrinsics from")
    centre = data.scene_box.aabb.mean(0)
    return centre, train.c2w[:, :, 3].cpu() - centre


def _like_training(data: NeRFDataModule, poses: Tensor) -> Views:
    train, n = data.views("train"), len(poses)
    height, width = train.images.shape[1:3]
    times = None  # a scene that moves does so once while the camera is under way
    if train.times is not None:
        times = torch.linspace(float(train.times.min()), float(train.times.max()), n)
    return Views(blank(n, width, height), poses.to(train.c2w), train.intrinsics[:1].expand(n, -1), times)
