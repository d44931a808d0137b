"""Cameras to render that no picture was taken with: orbits, spirals, other sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.frusta import as_pinholes
from lightning_nerf.cameras.poses import helix_poses, look_at, turntable_poses
from lightning_nerf.checks import BadArgument

_STEEPEST = 80.0  # degrees; nearer to the pole a camera that stays upright spins


def orbit(train: Cameras, aabb: Tensor, n_frames: int, elevation: float = 30.0, framed: Tensor | None = None) -> Cameras:
    """A full turn around the middle of the scene's box, in even steps: after the last frame comes the first.

    The distance is the training cameras' mean, or greater where ``framed`` needs it; intrinsics, size and bounds are those
    of the first of them as a pinhole (:func:`~lightning_nerf.cameras.frusta.as_pinholes`), the far bound moved by as much
    as the distance. Where they have times, the time passes once from their first to their last, forward alone: a motion
    that is shown backwards may be one that never was.

    Args:
        train: the training cameras.
        aabb: [2, 3], the scene's box.
        n_frames: cameras of the turn.
        elevation: degrees above the horizon, between -90 and 90.
        framed: [2, 3], a box whose corners stay in all pictures; None: the distance is the mean, whatever is cut off.
    """
    center, offsets = _around(train, aabb)
    radius = float(offsets.norm(dim=-1).mean())
    poses = turntable_poses(n_frames, radius, elevation, target=center.tolist())
    return _as_training(train, poses, 0.0 if framed is None else _step_back(train, poses, center, framed))


def spiral(train: Cameras, aabb: Tensor, n_frames: int, turns: float = 2.0, framed: Tensor | None = None) -> Cameras:
    """Two turns as of :func:`orbit`, from the elevation of the lowest training camera to that of the highest.

    Elevations end at 80 degrees on either side. Times are those of :func:`orbit`.
    """
    center, offsets = _around(train, aabb)
    radii = offsets.norm(dim=-1)
    heights = torch.rad2deg(torch.asin((offsets[:, 2] / radii.clamp(min=1e-6)).clamp(-1, 1))).clamp(-_STEEPEST, _STEEPEST)
    elevations = float(heights.min()), float(heights.max())
    radius = float(radii.mean())
    poses = helix_poses(n_frames, radius, elevations, turns, target=center.tolist())
    return _as_training(train, poses, 0.0 if framed is None else _step_back(train, poses, center, framed))


def sway(train: Cameras, aabb: Tensor, n_frames: int) -> Cameras:
    """One round within the training cameras' own places, for scenes that they see from one side, looking along +y.

    An ellipse around their middle, as wide and as high as nine tenths of them, that looks at the middle of the box; else as
    :func:`orbit`.
    """
    _around(train, aabb)
    eyes = train.c2w[:, :, 3].cpu()
    middle = eyes.mean(0)
    reach = (eyes - middle).abs().quantile(0.9, dim=0)
    angle = torch.arange(n_frames) * (2 * math.pi / max(n_frames, 1))
    around = torch.stack([angle.cos(), torch.zeros_like(angle), angle.sin()], -1)
    return _as_training(train, look_at(middle + reach * around, aabb.mean(0).tolist()), 0.0)


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


def _step_back(train: Cameras, poses: Tensor, center: Tensor, framed: Tensor) -> float:
    """How much farther from ``center`` cameras at ``poses`` must be, so that all corners of a box are in their pictures."""
    fx, fy, cx, cy = as_pinholes(train.chosen(slice(0, 1))).intrinsics[0].cpu().double().tolist()
    width, height = train.size[0].tolist()
    corners = torch.cartesian_prod(*framed.cpu().double().unbind(1)) - center.double()
    x, y, back = torch.einsum("nij,ki->jnk", poses[:, :, :3].double(), corners)
    needed = torch.zeros_like(back)  # depth at which a corner is on the edge of the picture
    for slope, edge in ((fx * x, width - cx), (-fx * x, cx), (-fy * y, height - cy), (fy * y, cy)):
        if edge > 0:  # a crop beside the axis shows no corner of that side at any distance
            needed = torch.maximum(needed, slope / edge)
    distance = (poses[0, :, 3].double() - center.double()).norm()
    return max(0.0, float((needed + back - distance).max()))


def _as_training(train: Cameras, poses: Tensor, step_back: float) -> Cameras:
    n, times = len(poses), None
    if train.times is not None:
        times = torch.linspace(float(train.times.min()), float(train.times.max()), n, dtype=torch.float32)
    first = as_pinholes(train.chosen(slice(0, 1)))
    cameras = first.map(lambda t: t.expand(n, *t.shape[1:]))
    if step_back > 0:
        poses = poses.clone()
        poses[:, :, 3] += step_back * poses[:, :, 2]
        if cameras.bounds is not None:
            cameras = cameras._replace(bounds=cameras.bounds + cameras.bounds.new_tensor([0.0, step_back]))
    return cameras._replace(c2w=poses.to(train.c2w), times=times)
