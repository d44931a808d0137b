"""Cameras to render that no picture was taken with: orbits, spirals, other sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.poses import helix_poses, turntable_poses
from lightning_nerf.checks import BadArgument

_STEEPEST = 80.0  # degrees; nearer to the pole a camera that stays upright spins


def orbit(train: Cameras, aabb: Tensor, n_frames: int, elevation: float = 30.0) -> Cameras:
    """A full turn around the middle of the scene's box, in even steps: after the last frame comes the first.

    The distance is the training cameras' mean; intrinsics, size and bounds are those of the first of them.

    Args:
        train: the training cameras.
        aabb: [2, 3], the scene's box.
        n_frames: cameras of the turn.
        elevation: degrees above the horizon, between -90 and 90.
    """
    center, offsets = _around(train, aabb)
    radius = float(offsets.norm(dim=-1).mean())
    return _as_training(train, turntable_poses(n_frames, radius, elevation, target=center.tolist()))


def spiral(train: Cameras, aabb: Tensor, n_frames: int, turns: float = 2.0) -> Cameras:
    """Two turns as of :func:`orbit`, from the elevation of the lowest training camera to that of the highest.

    Elevations end at 80 degrees on either side.
    """
    center, offsets = _around(train, aabb)
    radius = offsets.norm(dim=-1)
    heights = torch.rad2deg(torch.asin((offsets[:, 2] / radius.clamp(min=1e-6)).clamp(-1, 1))).clamp(-_STEEPEST, _STEEPEST)
    elevations = float(heights.min()), float(heights.max())
    return _as_training(train, helix_poses(n_frames, float(radius.mean()), elevations, turns, target=center.tolist()))


def resized(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same cameras with pictures of another size, pixels as square as before.

    The vertical field of view is kept; a wider picture sees more on both sides, a narrower one less.
    """
    old = cameras.size.to(cameras.intrinsics)
    fx, fy, cx, cy = cameras.intrinsics.unbind(-1)
    scale = height / old[:, 1]
    intrinsics = torch.stack([fx * scale, fy * scale, width / 2 + (cx - old[:, 0] / 2) * scale, cy * scale], -1)
    size = cameras.size.new_tensor([width, height]).expand(cameras.n_views, 2).contiguous()
    return cameras._replace(intrinsics=intrinsics, size=size)


def box_distances(cameras: Cameras, aabb: Tensor) -> tuple[float, float]:
    """The least and the greatest distance from any of the cameras to a point of the box, both within the rays' bounds."""
    eyes = cameras.c2w[:, :, 3].cpu()
    nearest = (eyes - eyes.clamp(aabb[0], aabb[1])).norm(dim=-1).min()
    farthest = torch.maximum((eyes - aabb[0]).abs(), (eyes - aabb[1]).abs()).norm(dim=-1).max()
    if cameras.bounds is None:
        return float(nearest), float(farthest)
    near, far = cameras.bounds[:, 0].min(), cameras.bounds[:, 1].max()
    return max(float(near), float(nearest)), min(float(far), float(farthest))


def _around(train: Cameras, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of the scene's box [3], and where the training cameras are from there [V, 3]."""
    if train.n_views == 0:
        raise BadArgument("train: expected training cameras to take distance and intrinsics from, got none")
    center = aabb.mean(0)
    return center, train.c2w[:, :, 3].cpu() - center


def _as_training(train: Cameras, poses: Tensor) -> Cameras:
    n, times = len(poses), None  # a scene that moves does so once while the camera is under way
    if train.times is not None:
        times = torch.linspace(float(train.times.min()), float(train.times.max()), n)
    first = train.chosen(slice(0, 1))
    return first.map(lambda t: t.expand(n, *t.shape[1:]))._replace(c2w=poses.to(train.c2w), times=times)
