"""Rays through the pixels of cameras."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.ops.lens_rays import lens_rays
from lightning_nerf.ops.lenses import Lens


def camera_rays(c2w: Tensor, intrinsics: Tensor, x: Tensor, y: Tensor, lens: Lens | None = None) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [R, 3] of the rays of cameras through the centers of pixels.

    Cameras follow OpenGL: x right, y up, looking along -z. The pixel in column x and row y covers [x, x + 1) x [y, y + 1).

    Args:
        c2w: [R, 3, 4], camera to world: rotation | position.
        intrinsics: [R, 4]: fx, fy, cx, cy in pixels.
        x, y: [R] column and row, integers; a fraction moves the ray off the pixel's center.
        lens: of each ray, or one for all, see :func:`~lightning_nerf.ops.lens_rays.lens_rays`; None: a pinhole.
    """
    origins = c2w[:, :, 3].clone(memory_format=torch.contiguous_format)
    if lens is not None:
        return origins, lens_rays(c2w, intrinsics, lens, x, y).directions
    u, v = _slopes(intrinsics, x, y)
    camera = torch.stack([u, v, torch.full_like(u, -1.0)], -1)
    directions = (c2w[:, :, :3] * camera[:, None, :]).sum(-1)  # no matmul: TF32 would cost a thousandth of a radian
    return origins, directions / directions.norm(dim=-1, keepdim=True)


def pixel_footprint(intrinsics: Tensor, x: Tensor, y: Tensor, lens: Lens | None = None) -> Tensor:
    """Side of a pixel [R] at distance 1 along its ray, in units of that distance; the arguments of :func:`camera_rays`.

    The geometric mean of the pixel's width and height on a plane parallel to the picture, where the ray crosses that plane:
    ``1 / sqrt(fx fy (1 + u^2 + v^2))``, u and v being the ray's slopes against the axis. At distance t it is t times that.
    For lenses see :func:`~lightning_nerf.ops.lens_rays.lens_rays`.
    """
    if lens is not None:
        c2w = torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device)[None, :3]
        return lens_rays(c2w, intrinsics, lens, x, y).footprint
    u, v = _slopes(intrinsics, x, y)
    return (intrinsics[..., 0] * intrinsics[..., 1] * (1 + u * u + v * v)).abs().rsqrt()


def _slopes(intrinsics: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rays against the axis, to the right and upwards."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x = x if x.is_floating_point() else x.to(cx)  # an integer plus 0.5 has torch's default dtype
    return (x + 0.5 - cx) / fx, (cy - 0.5 - y) / fy
