"""Directions, footprints and validity of the rays that enter a camera through a lens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops.lenses import (
    Lens,
    area_per_place,
    density,
    distort,
    is_valid,
    places,
    radius_limit,
    undistort,
    view_directions,
)


class LensRays(NamedTuple):
    """What a lens makes of R pixels."""

    directions: Tensor  # [R, 3], of unit length, in the world
    footprint: Tensor  # [R], side of the pixel at distance 1
    valid: Tensor  # [R] bool: False where the lens sees nothing


def lens_rays(c2w: Tensor, intrinsics: Tensor, lens: Lens, x: Tensor, y: Tensor, limit: Tensor | None = None) -> LensRays:
    """The rays through the centers of pixels; see :mod:`lightning_nerf.ops.lenses` for the models.

    ``footprint = sqrt(area / (fx fy density))``, where density says how much the lens magnifies there, and area is that of
    a pixel's share at distance 1: in the plane parallel to the picture for pinhole and opencv, so that a lens without
    distortion has the pinhole's footprint; the solid angle for fisheye and equirectangular, which see beyond any plane.

    Args:
        c2w: [R, 3, 4] or [1, 3, 4], camera to world.
        intrinsics: [R, 4] or [1, 4]: fx, fy, cx, cy in pixels; pixels per radian at the center for fisheye, and everywhere
            along longitudes and latitudes for equirectangular.
        lens: R, or one for all.
        x, y: [R] column and row; a fraction moves the ray off the pixel's center.
        limit: [R] or [1], :func:`~lightning_nerf.ops.lenses.radius_limit` of the lenses, where the caller knows it.

    Returns:
        In the dtype of ``c2w``. A ray that is not valid is the one along the camera's axis. Directions are computed in
        float64 and rounded once, so that in pictures of 2000 pixels they hit their pixel to 1e-4 of its side.

    The kernels have no derivative. Where ``c2w`` alone requires a gradient, as for learned poses, kernels find the rays in
    the camera and torch turns them. Where another argument does, :func:`reference` computes the same, differentiable three
    times.
    """
    x, y = (t if t.is_floating_point() else t.to(c2w) for t in (x, y))
    limit = radius_limit(lens) if limit is None else limit
    args = intrinsics, lens.model, lens.coefficients, limit, x, y
    if needs_grad(*args) or c2w.dtype is not torch.float32 or x.dtype is not torch.float32:
        return LensRays(*reference(c2w, *args))
    is_posed = needs_grad(c2w)
    pose = torch.eye(4, device=c2w.device)[None, :3] if is_posed else c2w
    rays = LensRays(*torch.ops.lightning_nerf.lens_rays(*(t.contiguous() for t in (pose, *args))))
    if not is_posed:
        return rays
    world = (c2w[:, :, :3] * rays.directions[:, None, :]).sum(-1)
    return rays._replace(directions=world / world.norm(dim=-1, keepdim=True))


def learned_lens_view(c2w: Tensor, intrinsics: Tensor, lens: Lens, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and footprints of :func:`lens_rays` for pixels that are known to be valid; by kernels where it can."""
    rays = lens_rays(c2w, intrinsics, lens, x, y, intrinsics.new_full((1,), torch.inf))
    return rays.directions, rays.footprint


def lens_view(c2w: Tensor, intrinsics: Tensor, lens: Lens, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and footprints of :func:`lens_rays`, in torch."""
    u, v = offsets_of(intrinsics, x, y)
    a, b = undistort(u, v, lens)
    return _directions(c2w, a, b, lens), _footprint(intrinsics, a, b, lens).to(c2w.dtype)


def offsets_of(intrinsics: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (u, v) of pixels' centers from the principal point in focal lengths, [R] float64."""
    fx, fy, cx, cy = intrinsics.double().unbind(-1)
    return (x.double() + 0.5 - cx) / fx, (y.double() + 0.5 - cy) / fy


def unproject(intrinsics: Tensor, lens: Lens, x: Tensor, y: Tensor) -> Tensor:
    """Directions [R, 3] of unit length, in the camera's OpenGL axes, of pixels; the arguments of :func:`lens_rays`."""
    identity = torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device)[None, :3]
    return lens_rays(identity, intrinsics, lens, x, y).directions


def project(intrinsics: Tensor, lens: Lens, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows (x, y) [R] float64 where directions in the camera's OpenGL axes meet the picture.

    The inverse of :func:`unproject` within the lens's valid region. Directions behind a pinhole or an opencv lens give NaN.
    """
    fx, fy, cx, cy = intrinsics.double().unbind(-1)
    u, v = distort(*places(directions.double(), lens), lens)
    return cx + fx * u - 0.5, cy + fy * v - 0.5


def valid_pixels(intrinsics: Tensor, lens: Lens, x: Tensor, y: Tensor) -> Tensor:
    """Whether the lens sees anything at pixels [R] bool; the arguments of :func:`lens_rays`."""
    identity = torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device)[None, :3]
    return lens_rays(identity, intrinsics, lens, x, y).valid


def _directions(c2w: Tensor, a: Tensor, b: Tensor, lens: Lens) -> Tensor:
    world = (c2w[:, :, :3].double() * view_directions(a, b, lens)[:, None, :]).sum(-1)
    return (world / world.norm(dim=-1, keepdim=True)).to(c2w.dtype)


def _footprint(intrinsics: Tensor, a: Tensor, b: Tensor, lens: Lens) -> Tensor:
    area = area_per_place(a, b, lens) / (intrinsics[:, 0] * intrinsics[:, 1] * density(a, b, lens))
    return area.abs().sqrt()


def reference(
    c2w: Tensor, intrinsics: Tensor, lens_model: Tensor, lens: Tensor, limit: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    lenses = Lens(lens_model, lens)
    u, v = offsets_of(intrinsics, x, y)
    a, b = undistort(u, v, lenses)
    valid = is_valid(u, v, a, b, intrinsics[:, :2].double().abs().amax(-1), lenses, limit)
    a, b = torch.where(valid, a, 0), torch.where(valid, b, 0)
    return _directions(c2w, a, b, lenses), _footprint(intrinsics, a, b, lenses).to(c2w.dtype), valid


def fake(
    c2w: Tensor, intrinsics: Tensor, lens_model: Tensor, lens: Tensor, limit: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((*x.shape, 3)), torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


library.define(
    "lens_rays",
    "(Tensor c2w, Tensor intrinsics, Tensor lens_model, Tensor lens, Tensor limit, Tensor x, Tensor y) "
    "-> (Tensor directions, Tensor footprint, Tensor valid)",
    reference,
    fake,
)
