"""The box of a scene for which none is given, from its cameras alone.

The default suits scenes around the origin. Cameras around another place, or at another scale, say so by where they look.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.scene_box import SceneBox

DEFAULT_BOX = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))  # that of the NeRF-Synthetic scenes
_MEETING = 0.5  # the least share of central rays that must meet the default box
_MARGIN = 1.1  # objects touch the edges of few pictures, and their near side is seen larger
_ROUNDS = 4  # of leaving out strays
_STRAY = 4.0  # a line is one if it is so much farther from the point than half of the lines
_PARALLEL = 1e-3  # mean squared sine between the rays; 2 degrees. Below it, where they meet is chance
_FEW = 0.05  # of the training rays: below it a box is elsewhere, or in another unit; a small object may cover as little
_VIEWS, _PER_SIDE = 200, 9  # views that are looked at, at most, and rays along a side of each
_AHEAD = 5.0  # how far parallel cameras look, in units of their own spread; a wide guess, which the message admits


def fit_box(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> tuple[Tensor, str | None]:
    """A box for what the cameras look at: the default one if it will do, else one of their own.

    The default is kept if the point that the central rays come nearest to lies in it (parallel rays have no such point),
    and at least half of these rays meet it. Otherwise the box is a cube around that point, as large as the pictures show of
    the plane through it.

    Args:
        c2w: [V, 3, 4], camera to world, of the training views; V >= 1.
        intrinsics: [V, 4]: fx, fy, cx, cy in pixels.
        sizes: [V, 2]: height and width in pixels.

    Returns:
        Two corners [2, 3] float32, and None for the default, or the sentence to tell the user. Cameras scaled by a power of
        two give a box scaled by exactly that.

    >>> import torch
    >>> from lightning_nerf.cameras.poses import turntable_poses
    >>> poses = turntable_poses(8, radius=4.0, target=(10.0, 0.0, 0.0))
    >>> box, message = fit_box(poses, torch.tensor([[100.0, 100.0, 50.0, 50.0]]).expand(8, 4), torch.full((8, 2), 100))
    >>> [round(x, 2) for x in box.mean(0).tolist()]
    [10.0, 0.0, 0.0]
    """
    default = torch.tensor(DEFAULT_BOX, dtype=torch.float32)
    origins, directions = central_rays(c2w, intrinsics, sizes)
    point = nearest_point(origins, directions)
    holds_point = bool(((point >= default[0]) & (point <= default[1])).all()) or are_parallel(directions)
    if holds_point and share_meeting(origins, directions, default) >= _MEETING:
        return default, None
    box, why = derive_box(c2w, intrinsics, sizes)
    return box, f"aabb: none is given, and the default does not hold what the cameras see. Took {_corners(box)}: {why}."


def box_hint(cameras: Cameras, box: SceneBox) -> str | None:
    """A hint for a box that few of the training rays meet, with one that they would; or None.

    A contracted field is defined outside of its box, so there the box may be as small as the user likes.
    """
    if cameras.n_views == 0 or box.contraction != "none":
        return None
    cameras = cameras.chosen(slice(None, None, 1 + cameras.n_views // _VIEWS))
    given = (cameras.c2w, cameras.intrinsics, cameras.size.flip(1))
    rays = spread_rays(*given)
    share = share_meeting(*rays, box.aabb.cpu())
    if share >= _FEW:
        return None
    fitting, why = derive_box(*given)
    if share_meeting(*rays, fitting) <= share:
        return None
    return (
        f"aabb: {share:.1%} of the training rays meet the scene's box, {_corners(box.aabb)}; {why}. If that is the object, "
        f"give the data aabb={_corners(fitting)} (--data.aabb)"
    )


def derive_box(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> tuple[Tensor, str]:
    """A cube [2, 3] around what the cameras look at, whatever the default is, and why; arguments as of :func:`fit_box`."""
    origins, directions = central_rays(c2w, intrinsics, sizes)
    tangents = _half_fields_of_view(intrinsics, sizes)
    middle, mean = origins.mean(0), torch.nn.functional.normalize(directions.mean(0), dim=-1)
    spread = float((origins - middle).norm(dim=-1).max())
    point = nearest_point(origins, directions)
    distances = ((point - origins) * directions).sum(-1)
    if are_parallel(directions):  # also of one camera
        ahead = _AHEAD * spread or 4.0
        point, half = middle + ahead * mean, ahead * float(tangents.median()) + spread
        why = "the cameras look the same way, so how far away it is was guessed"
    elif float(distances.median()) <= 0:
        point, half, why = middle, _AHEAD * spread, "the cameras look outwards, so its size was guessed"
    else:
        half = _MARGIN * float((distances.clamp(min=0) * tangents.clamp(max=1)).quantile(0.9))
        away = float(distances.median())
        x, y, z = point.where(point.abs() > 1e-4 * away, 0).tolist()
        why = f"the cameras look at ({x:.4g}, {y:.4g}, {z:.4g}), from about {away:.4g} away"
    return torch.stack([point - half, point + half]).float(), why


def central_rays(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [V, 3] float64 of the rays through the pictures' centers; see :func:`fit_box`."""
    return _rays_through(c2w, intrinsics, sizes, 0.5, 0.5)


def corner_rays(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The same of rays through the four corners of each picture, as of a pinhole: [4 V, 3]."""
    rays = [_rays_through(c2w, intrinsics, sizes, x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)]
    return torch.cat([origins for origins, _ in rays]), torch.cat([directions for _, directions in rays])


def spread_rays(c2w: Tensor, intrinsics: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The same of rays that are spread evenly over each picture, 81 of each: [81 V, 3]."""
    at = [(i + 0.5) / _PER_SIDE for i in range(_PER_SIDE)]
    rays = [_rays_through(c2w, intrinsics, sizes, x, y) for x in at for y in at]
    return torch.cat([origins for origins, _ in rays]), torch.cat([directions for _, directions in rays])


def nearest_point(origins: Tensor, directions: Tensor) -> Tensor:
    """The point [3] with the least sum of squared distances to the rays' lines, without the lines that are far from it.

    Where the lines are parallel, it is the one nearest to the middle of the origins.
    """
    middle = origins.mean(0)
    across = torch.eye(3, dtype=origins.dtype) - directions[:, :, None] * directions[:, None, :]
    offsets = (across @ (origins - middle)[..., None])[..., 0]
    kept = torch.ones(len(origins), dtype=torch.bool)
    point = torch.zeros_like(middle)
    for _ in range(_ROUNDS):
        normal = across[kept].mean(0)
        point = torch.linalg.pinv(normal, rtol=_PARALLEL, hermitian=True) @ offsets[kept].mean(0)
        distances = (across @ point - offsets).norm(dim=-1)
        kept = distances <= _STRAY * distances.median()
    return middle + point


def share_meeting(origins: Tensor, directions: Tensor, box: Tensor) -> float:
    """The share of the rays that meet a box [2, 3] in front of their origins, or begin in it."""
    box = box.to(origins)
    to_planes = (box[:, None] - origins) / directions  # infinite where parallel to a plane
    near = to_planes.amin(0).nan_to_num(nan=-torch.inf).amax(-1)  # nan: in the plane, and parallel to it
    far = to_planes.amax(0).nan_to_num(nan=torch.inf).amin(-1)
    return float((near.clamp(min=0) <= far).double().mean())


def _rays_through(c2w: Tensor, intrinsics: Tensor, sizes: Tensor, x: float, y: float) -> tuple[Tensor, Tensor]:
    """Of each picture the ray through one place, from (0, 0) at the upper left corner to (1, 1)."""
    c2w, (fx, fy, cx, cy) = c2w.double().cpu(), intrinsics.double().cpu().unbind(-1)
    height, width = sizes.double().cpu().unbind(-1)
    local = torch.stack([(x * width - cx) / fx, (cy - y * height) / fy, -torch.ones_like(fx)], -1)
    directions = (c2w[:, :, :3] @ local[..., None])[..., 0]
    return c2w[:, :, 3], torch.nn.functional.normalize(directions, dim=-1, eps=0.0)


def _corners(box: Tensor) -> str:
    low, high = ("[" + ", ".join(f"{x:.4g}" for x in corner) + "]" for corner in box.tolist())
    return f"[{low}, {high}]"


def are_parallel(directions: Tensor) -> bool:
    """Do the rays point the same way, or against each other, within about two degrees?"""
    largest = torch.linalg.eigvalsh(directions.mT @ directions / len(directions))[-1]  # the mean squared cosine
    return float(1 - largest) < _PARALLEL


def _half_fields_of_view(intrinsics: Tensor, sizes: Tensor) -> Tensor:
    """[V]: the tangent of half the wider field of view."""
    fx, fy = intrinsics.double().cpu()[:, :2].unbind(-1)
    height, width = sizes.double().cpu().unbind(-1)
    return torch.maximum(0.5 * width / fx, 0.5 * height / fy)
