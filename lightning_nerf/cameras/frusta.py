"""Pinholes that stand in for cameras with lenses, where only planes and straight lines will do."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.ops.lens_rays import lens_rays
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, FISHEYE, Lens, radius_limit

_PER_EDGE = 33  # rays along each edge of a picture, its corners included
_LEAST_DEPTH = 0.1  # the cosine of the widest angle off the axis that a frustum may have: 84 degrees
_MARGIN = 0.01  # of the picture's width, for what bulges between two of the rays


def as_pinholes(cameras: Cameras) -> Cameras:
    """The same cameras without their lenses, to look around with.

    Focal lengths are kept. Those of fisheye and equirectangular lenses, which see farther around than a plane can show
    without stretching it, become at least half the longer side of the picture: 90 degrees.
    """
    if cameras.lens_model is None:
        return cameras
    wide = ((cameras.lens_model == FISHEYE) | (cameras.lens_model == EQUIRECTANGULAR))[:, None]
    focal, center = cameras.intrinsics.split(2, 1)
    least = 0.5 * cameras.size.amax(1, keepdim=True).to(focal)
    intrinsics = torch.cat([torch.where(wide, focal.maximum(least), focal), center], 1)
    return cameras._replace(intrinsics=intrinsics, lens_model=None, lens=None)


def frustum_intrinsics(cameras: Cameras) -> Tensor | None:
    """Intrinsics [V, 4] of pinholes that see all that cameras with lenses see; None: one of them sees too far around.

    That is a camera with a ray more than 84 degrees off its axis, or with a border that its lens does not see.
    """
    if cameras.lens_model is None or cameras.lens is None or cameras.n_views == 0:
        return cameras.intrinsics
    if bool((cameras.lens_model == EQUIRECTANGULAR).any()):
        return None
    along = torch.linspace(0, 1, _PER_EDGE, device=cameras.c2w.device)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    places = torch.cat([torch.stack(edge, -1) for edge in ((along, zero), (along, one), (zero, along), (one, along))])
    x, y = (places * cameras.size[:, None] - 0.5).flatten(0, 1).unbind(-1)  # edges of the outermost pixels
    view = torch.arange(cameras.n_views, device=x.device).repeat_interleave(len(places))
    lens = Lens(cameras.lens_model, cameras.lens)
    eye = torch.eye(4, device=x.device)[None, :3]
    each = Lens(lens.model[view], lens.coefficients[view])
    directions, _, valid = lens_rays(eye, cameras.intrinsics[view], each, x, y, radius_limit(lens)[view])
    depth = -directions[:, 2]
    if not bool((valid & (depth >= _LEAST_DEPTH)).all()):
        return None
    slopes = (directions[:, :2] * directions.new_tensor([1.0, -1.0]) / depth[:, None]).view(cameras.n_views, -1, 2)
    low, high = slopes.amin(1), slopes.amax(1)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    focal = cameras.size / (high - low)
    return torch.cat([focal, -low * focal], 1)
