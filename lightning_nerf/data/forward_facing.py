"""Scale, orientation and box of a capture whose cameras all look one way, for normalized device coordinates.

The scene is turned so that the cameras' middle is the origin and they look along +y with z up. Its unit is the distance
from there to the plane before which no picture shows anything. See "ndc" of :class:`~lightning_nerf.SceneBox`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.captured_box import CaptureFit
from lightning_nerf.data.default_box import central_rays, corner_rays
from lightning_nerf.data.scene import Scene

_BEFORE = 0.75  # of the distance of the nearest points, where no nearest distance is stated; of LLFF's, too
_STRAYS = 0.01  # the share of points that may lie nearer: mismatches
_STEEPEST = math.cos(math.radians(75))  # between a ray and where the cameras look
_MARGIN = 1.02  # of the front face, beyond the pictures' edges
_FARTHEST = 1000.0  # where rays end, of views that do not say
_DEPTH = 3.0  # where the box ends. It is the unit of lengths, and what films look at; the map goes on behind it


def fit_forward(
    c2w: Tensor,
    intrinsics: Tensor,
    sizes: Tensor,
    points: Tensor | None = None,
    nearest: Tensor | None = None,
    upright: Tensor | None = None,
) -> CaptureFit:
    """The units of a scene whose cameras look one way.

    Args:
        c2w, intrinsics, sizes, points, upright: as of :func:`~lightning_nerf.data.captured_box.fit_capture`.
        nearest: [V], where each view's rays begin; None: from the points.

    Raises:
        BadArgument: cameras look different ways; content begins beside or behind a camera; no distance is known.

    >>> import torch
    >>> poses = torch.eye(4)[None, :3].repeat(3, 1, 1)  # side by side; they look along -z, and y is up
    >>> poses[:, 0, 3] = torch.tensor([-1.0, 0, 1])
    >>> given = poses, torch.tensor([[100.0, 100.0, 50.0, 50.0]]).expand(3, 4), torch.full((3, 2), 100)
    >>> fit_forward(*given, nearest=torch.full((3,), 4.0)).to_world
    tensor([[ 4.,  0.,  0.,  0.],
            [ 0.,  0.,  4.,  0.],
            [ 0., -4.,  0.,  0.],
            [ 0.,  0.,  0.,  1.]], dtype=torch.float64)
    """
    origins, directions = central_rays(c2w, intrinsics, sizes)
    middle, forward = origins.mean(0), torch.nn.functional.normalize(directions.mean(0), dim=-1)
    least = float((corner_rays(c2w, intrinsics, sizes)[1] @ forward).min())
    if least < _STEEPEST:
        raise BadArgument(
            "contraction: 'ndc' is for cameras that look one way, expected all rays within 75 degrees of it, got one at "
            f"{math.degrees(math.acos(max(-1.0, least))):.0f}; take 'l2' or 'linf'"
        )
    if nearest is not None and len(nearest):
        front = float(((origins - middle) @ forward + nearest.double().cpu()).min())
    elif points is not None and len(points):
        front = _BEFORE * float(((points.double().cpu() - middle) @ forward).quantile(_STRAYS))
    else:
        raise BadArgument(
            "contraction: 'ndc' begins where content does, expected a capture with points (COLMAP) or nearest distances "
            "(LLFF), got one with neither; take 'l2' or 'linf'"
        )
    if front <= float(((origins - middle) @ forward).max()):
        raise BadArgument(
            "contraction: 'ndc' has one plane between all cameras and all content, expected cameras side by side, got "
            f"content {front:.4g} ahead of their middle, and a camera as far; take 'l2' or 'linf'"
        )
    to_world = torch.eye(4, dtype=torch.float64)
    to_world[:3, :3] = front * _axes(forward, (c2w if upright is None else upright).double().cpu())
    to_world[:3, 3] = middle
    return CaptureFit(to_world, "the middle of the cameras, which look along y", "its box begins at y = 1")


def forward_box(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> Tensor:
    """The box [2, 3] float32 whose frustum holds all that pictures show behind y = 1; arguments in the scene's units."""
    origins, directions = corner_rays(c2w, intrinsics, sizes)
    across = torch.tensor([0, 2])
    to_front = (1 - origins[:, 1:2]) / directions[:, 1:2]
    at_front = (origins + to_front * directions)[:, across]
    at_infinity = (directions / directions[:, 1:2])[:, across]  # on the front face; between these two a ray goes one way
    places = torch.cat([at_front, at_infinity])
    low, high = places.amin(0), places.amax(0)
    middle, half = (low + high) / 2, _MARGIN * (high - low) / 2
    low, high = (middle - half).tolist(), (middle + half).tolist()
    return torch.tensor([[low[0], 1.0, low[1]], [high[0], _DEPTH, high[1]]], dtype=torch.float32)


def facing_forward(scene: Scene) -> Scene:
    """A scene in these units, whose rays begin at the box where the views do not say.

    Raises:
        BadArgument: a lens may see what lies beside or behind a plane.
    """
    cameras = scene.cameras
    for name in ("fisheye", "equirectangular"):
        if cameras.lens_model is not None and bool((cameras.lens_model == LENS_MODELS.index(name)).any()):
            raise BadArgument(
                "contraction: 'ndc' has no place for what is beside a camera, expected lenses of kind pinhole or opencv, "
                f"got {name}; take 'l2' or 'linf'"
            )
    if cameras.bounds is None:
        near = 1 - cameras.c2w[:, 1, 3]  # of the ray straight ahead; others are still before the box there
        cameras = cameras._replace(bounds=torch.stack([near, torch.full_like(near, _FARTHEST)], -1))
    return scene._replace(cameras=cameras)


def _axes(forward: Tensor, c2w: Tensor) -> Tensor:
    """A rotation [3, 3] from x right, y forward, z up."""
    mean = torch.nn.functional.normalize(c2w[:, :, 1], dim=-1).mean(0)
    up = mean - (mean @ forward) * forward
    if float(up.norm()) < 1e-3:  # cameras of all turns about where they look
        up = torch.linalg.svd(forward[None]).Vh[1]
    up = torch.nn.functional.normalize(up, dim=-1)
    return torch.stack([torch.linalg.cross(forward, up), forward, up], 1)
