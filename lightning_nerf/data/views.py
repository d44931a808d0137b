"""Posed images, and the rays through their pixels.

Cameras follow OpenGL and NeRF-Synthetic: x right, y up, looking along -z. The pixel in column x and row y covers
[x, x + 1) x [y, y + 1), row 0 on top; its ray passes through its centre.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.ops.random import STREAM_RAYS, random_uniform
from lightning_nerf.types import RayBatch, Rays


class Views(NamedTuple):
    """V posed images of one size."""

    images: Tensor  # [V, H, W, C] uint8, C = 3 (rgb) or 4 (rgb and straight alpha)
    c2w: Tensor  # [V, 3, 4] float32, camera to world: rotation | position
    intrinsics: Tensor  # [V, 4] float32: fx, fy, cx, cy in pixels
    times: Tensor | None = None  # [V] float32
    pixels: Tensor | None = None  # [P] int64, drawable pixels as indices into [V * H * W]; None: all

    def to(self, device: torch.device | str) -> Views:
        """These views on ``device``; through pinned memory, hence asynchronous, from the CPU to a CUDA device."""
        device = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            pin = device.type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

        times, pixels = (None if tensor is None else move(tensor) for tensor in (self.times, self.pixels))
        return Views(move(self.images), move(self.c2w), move(self.intrinsics), times, pixels)


def pixel_rays(views: Views, image_index: Tensor, x: Tensor, y: Tensor, near: float | Tensor, far: float | Tensor) -> Rays:
    """Rays from the camera of each given image through the centre of its pixel in column x and row y.

    Args:
        views: on any device, where everything else must be, too.
        image_index: [R] int64.
        x, y: [R] pixel column and row, integers; a fraction moves the ray off the pixel's centre.
        near, far: one number for all rays, or [R].

    Returns:
        R rays with directions of unit length, so t is a distance (to the camera, not along its axis). Indices are not
        checked on a GPU.
    """
    fx, fy, cx, cy = views.intrinsics[image_index].unbind(-1)
    c2w = views.c2w[image_index]
    camera = torch.stack([(x + 0.5 - cx) / fx, (cy - 0.5 - y) / fy, torch.full_like(cx, -1.0)], -1)
    directions = (c2w[:, :, :3] * camera[:, None, :]).sum(-1)  # no matmul: TF32 would cost a thousandth of a radian
    directions = directions / directions.norm(dim=-1, keepdim=True)
    times = None if views.times is None else views.times[image_index]
    return Rays(c2w[:, :, 3].contiguous(), directions, _per_ray(near, cx), _per_ray(far, cx), times)


def image_rays(views: Views, index: int, near: float, far: float) -> Rays:
    """The rays of all pixels of one image, row by row: [H * W]."""
    n_views, height, width, _ = views.images.shape
    if not 0 <= index < n_views:
        raise IndexError(f"index: expected a view in 0 ... {n_views - 1}, got {index}")
    pixel = torch.arange(height * width, device=views.images.device)
    y = torch.div(pixel, width, rounding_mode="floor")
    return pixel_rays(views, torch.full_like(pixel, index), pixel - y * width, y, near, far)


def draw_rays(
    views: Views, key: Tensor, capacity: int, n_rays: Tensor | None = None, *, near: float, far: float
) -> RayBatch:
    """Rays through pixels drawn uniformly, with replacement, from all drawable pixels of all views.

    The draw is a function of ``key`` alone (:mod:`lightning_nerf.ops.random`, stream ``STREAM_RAYS``). A smaller
    ``n_rays`` or ``capacity`` gives the first rays of the larger draw. Nothing is synchronised, so a CUDA graph can
    capture it.

    Args:
        views: on the key's device.
        key: [3] int64, see :func:`lightning_nerf.ops.random.make_key`.
        capacity: R, the rays of the batch.
        n_rays: None, or an integer tensor of shape [] on the device: rays from this one on are inactive
            (``near = far = 0``) and False in the batch's ``mask``.
        near, far: of the active rays.

    Returns:
        A batch of R rays; ``alpha`` where the images have it, ``rgb`` not yet composited.
    """
    if views.images.device != key.device:
        raise ValueError(f"views: expected tensors on {key.device} (where key is), got {views.images.device}")
    if not (math.isfinite(near) and math.isfinite(far)):
        raise ValueError(f"near, far: expected finite numbers, got {near}, {far}")
    n_views, height, width, channels = views.images.shape
    index = _draw_index(key, capacity, n_views * height * width if views.pixels is None else views.pixels.shape[0])
    flat = index if views.pixels is None else views.pixels[index]
    row = torch.div(flat, width, rounding_mode="floor")  # of all images' rows
    image_index = torch.div(row, height, rounding_mode="floor")

    mask, near_far = None, (near, far)
    if n_rays is not None:
        mask = torch.arange(capacity, device=key.device) < n_rays
        near_far = (mask * near, mask * far)  # finite: inf * 0 would be NaN
    rays = pixel_rays(views, image_index, flat - row * width, row - image_index * height, *near_far)
    colours = views.images.view(-1, channels)[flat] / 255
    return RayBatch(rays, colours[:, :3], colours[:, 3] if channels == 4 else None, mask, image_index)


def truth(batch: RayBatch, background: Tensor) -> Tensor:
    """The batch's colours on a background: ``alpha * rgb + (1 - alpha) * background``, or ``rgb`` where all is opaque.

    ``background``: [3] or [R, 3]. A ray that hits nothing is the background exactly.
    """
    if batch.alpha is None:
        return batch.rgb
    alpha = batch.alpha[:, None]
    return alpha * batch.rgb + (1 - alpha) * background


def image_truth(image: Tensor, background: Tensor) -> Tensor:
    """One whole image [H, W, 3 or 4] uint8 as float [H, W, 3] on a background [3]; not quantised after compositing."""
    image = image.float() / 255
    if image.shape[-1] == 3:
        return image
    rgb, alpha = image[..., :3], image[..., 3:]
    return alpha * rgb + (1 - alpha) * background


def _per_ray(value: float | Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).expand_as(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def _draw_index(key: Tensor, n: int, size: int) -> Tensor:
    """n uniform integers in [0, size), [n] int64.

    One float32 has 2^24 values, fewer than the pixels of many scenes; two make a 48-bit fraction, exact in float64. Its
    largest value, 1 - 2^-48, times size stays below size after rounding. No integer is favoured by more than size / 2^48.
    """
    high, low = random_uniform(key, STREAM_RAYS, n, 2).double().unbind(-1)
    return torch.add(high, low, alpha=2.0**-24).mul_(size).long()
