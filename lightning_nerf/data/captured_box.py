"""Scale, orientation and center of a capture, of which tools leave all three to chance.

A reconstruction from photos is known up to a similarity: its up is any direction and its unit any length. A scene is read
in units of its own instead: z is up, the origin is what the cameras look at, and the cameras lie within 1 of it, so that
one box, [-1, 1]^3, and one set of lengths in a recipe fit every capture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.default_box import are_parallel, central_rays, nearest_point
from lightning_nerf.data.scene import Scene

CAPTURE_BOX = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
_AHEAD = 5.0  # how far parallel cameras look where no points say it, in units of their own spread
_STRAY = 4.0  # a camera is one if it is so much farther away than half of them
_UNITS = (1e-9, 1e9)  # of a scene in its files
_SNAP = 0.966  # the cosine of 15 degrees
_SNAP_RIGHT = 0.707  # that of 45 degrees: cameras on their side have level tops instead
_TURNED = 0.03  # mean square across: 10 degrees. Cameras that turn less leave open around what they lean
_LEVEL = 0.1  # of the mean squares out of the plane and within it, where the right axes lie in one
_LEAST_UP = 0.1  # of the mean of unit vectors: below it the cameras have no common up


class CaptureFit(NamedTuple):
    """From a scene's units to those of its files, and how that was found."""

    to_world: Tensor  # [4, 4] float64: a rotation times a scale, and the scene's origin
    why: str
    region: str = "its box is [-1, 1]^3"

    @property
    def scale(self) -> float:
        """The length of the scene's unit in the files' unit."""
        return float(torch.linalg.det(self.to_world[:3, :3]) ** (1 / 3))

    def message(self) -> str:
        """The sentence to tell the user."""
        x, y, z = self.to_world[:3, 3].tolist()
        up = ", ".join(f"{v:.3f}" for v in torch.nn.functional.normalize(self.to_world[:3, 2], dim=0).tolist())
        return (
            f"The scene's origin is ({x:.4g}, {y:.4g}, {z:.4g}) of its files ({self.why}), its z is their ({up}), and its "
            f"unit {self.scale:.4g} of theirs; {self.region}"
        )


def fit_capture(
    c2w: Tensor,
    intrinsics: Tensor,
    sizes: Tensor,
    points: Tensor | None = None,
    has_up: bool = False,
    upright: Tensor | None = None,
) -> CaptureFit:
    """A scene's units from its cameras and, where there are, points of its surfaces.

    - up: the mean of the cameras' up axes; +z if they have no common one. It leans where all look down from one side, so
      if their right axes lie in a plane, as those of level cameras do, its normal is up instead. Where the files' z should
      be up already (``has_up``), it is kept within 15 degrees of that.
    - origin: where the optical axes come nearest to each other, if that is in front of most cameras. Cameras that look the
      same way: the median of the points, else a guess ahead. Cameras that look outwards: their middle.
    - unit: from the origin to the farthest camera that is no stray; for cameras that look outwards to half of the points,
      else 5 times the cameras' spread.

    Args:
        c2w: [V, 3, 4], camera to world; V >= 1.
        intrinsics: [V, 4]: fx, fy, cx, cy in pixels.
        sizes: [V, 2]: height and width in pixels.
        points: [P, 3].
        has_up: whether the files' z is meant to be up.
        upright: [V, 3, 4], ``c2w`` with the axes of upright pictures, where pictures lie on their side.

    >>> import torch
    >>> from lightning_nerf.cameras.poses import turntable_poses
    >>> poses = turntable_poses(8, radius=4.0, target=(10.0, 0.0, 0.0))
    >>> fit = fit_capture(poses, torch.tensor([[100.0, 100.0, 50.0, 50.0]]).expand(8, 4), torch.full((8, 2), 100))
    >>> round(fit.scale, 3), [round(x, 3) for x in fit.to_world[:3, 3].tolist()]
    (4.0, [10.0, 0.0, 0.0])
    """
    origins, directions = central_rays(c2w, intrinsics, sizes)
    points = None if points is None or len(points) == 0 else points.double()
    middle = origins.mT.median(1).values
    spread = _farthest((origins - middle).norm(dim=-1))
    center = nearest_point(origins, directions)
    ahead = float(((center - origins) * directions).sum(-1).median())
    away = None if points is None else (points - middle).norm(dim=-1).median()
    if are_parallel(directions):
        mean = torch.nn.functional.normalize(directions.mean(0), dim=-1)
        center, why = middle + (_AHEAD * spread or 1.0) * mean, "the cameras look the same way: a guess ahead of them"
        if points is not None:
            center, why = points.median(0).values, "the middle of the points: the cameras look the same way"
    elif ahead <= 0:
        center, why = middle, "the middle of the cameras, which look outwards"
    else:
        why = f"what the cameras look at, from about {ahead:.4g} away"
    unit = _farthest((origins - center).norm(dim=-1))
    if center is middle:
        unit = max(spread, float(away) if away is not None else _AHEAD * spread)
    up = _up((c2w if upright is None else upright).double().cpu(), has_up)
    to_world = torch.eye(4, dtype=torch.float64)
    if not _UNITS[0] <= unit <= _UNITS[1]:  # all in one place, or of numbers that are no lengths
        unit = 1.0
    to_world[:3, :3] = _rotation_from_z(up) * unit
    to_world[:3, 3] = center
    return CaptureFit(to_world, why)


def to_scene_units(scene: Scene, to_world: Tensor) -> Scene:
    """A scene of the files' units in its own."""
    return scene._replace(cameras=cameras_to_scene_units(scene.cameras, to_world), to_world=to_world.float())


def cameras_to_scene_units(cameras: Cameras, to_world: Tensor) -> Cameras:
    """Cameras of the files' units in the scene's, given ``Scene.to_world``; bounds are scaled, too.

    >>> import torch
    >>> from lightning_nerf import Cameras
    >>> doubled = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    >>> pose = torch.tensor([[[1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0]]])
    >>> cameras_to_scene_units(Cameras.of_one_size(pose, torch.ones(4), 2, 2), doubled).c2w[0, :, 3]
    tensor([2., 0., 0.])
    """
    to_world = to_world.double().to(cameras.c2w.device)
    scale = torch.linalg.det(to_world[:3, :3]) ** (1 / 3)
    rotation = to_world[:3, :3] / scale
    c2w = cameras.c2w.double()
    turned = rotation.T @ c2w[:, :, :3]
    moved = (c2w[:, :, 3] - to_world[:3, 3]) @ rotation / scale
    bounds = None if cameras.bounds is None else (cameras.bounds.double() / scale).float()
    return cameras._replace(c2w=torch.cat([turned, moved[..., None]], -1).float(), bounds=bounds)


def cameras_to_world(cameras: Cameras, to_world: Tensor) -> Cameras:
    """The inverse of :func:`cameras_to_scene_units`."""
    return cameras_to_scene_units(cameras, torch.linalg.inv(to_world.double()))


def _farthest(distances: Tensor) -> float:
    """Of cameras, without strays."""
    return min(float(distances.max()), _STRAY * float(distances.median()))


def _up(c2w: Tensor, has_up: bool) -> Tensor:
    axes = torch.nn.functional.normalize(c2w[:, :, :3], dim=1)
    mean = axes[:, :, 1].mean(0)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if float(mean.norm()) < _LEAST_UP:
        return z
    up = torch.nn.functional.normalize(mean, dim=0)
    right = axes[:, :, 0]
    values, vectors = torch.linalg.eigh(right.T @ right / len(right))  # ascending
    normal = vectors[:, 0] * torch.sign(vectors[:, 0] @ up)
    if float(values[1]) > _TURNED and float(values[0]) < _LEVEL * float(values[1]) and float(normal @ up) > _SNAP_RIGHT:
        up = normal
    return z if has_up and float(up[2]) >= _SNAP else up


def _rotation_from_z(up: Tensor) -> Tensor:
    """The smallest rotation [3, 3] that takes z to a unit vector."""
    x, y, z = up.tolist()
    if z < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    k = 1 / (1 + z)
    rows = [[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]]
    return torch.tensor(rows, dtype=torch.float64)
