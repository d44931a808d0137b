"""Posed images, and the rays through their pixels.

Cameras follow OpenGL and NeRF-Synthetic: x right, y up, looking along -z. The pixel in column x and row y covers
[x, x + 1) x [y, y + 1), row 0 on top; its ray passes through its centre.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_instance, check_same_device, check_tensor
from lightning_nerf.ops import draw_rays as ops
from lightning_nerf.ops.draw_rays import camera_rays
from lightning_nerf.types import RayBatch, Rays

_COLOURS = (torch.float32, torch.bfloat16, torch.float16)
_OPTIONAL = ("batch.rays.times", "batch.alpha", "batch.mask")


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
    origins, directions = camera_rays(views.c2w[image_index], views.intrinsics[image_index], x, y)
    times = None if views.times is None else views.times[image_index]
    return Rays(origins, directions, _per_ray(near, origins), _per_ray(far, origins), times)


def image_rays(views: Views, index: int, near: float, far: float, start: int = 0, stop: int | None = None) -> Rays:
    """The rays of one image's pixels ``start`` to ``stop`` (by default all), row by row: [stop - start]."""
    n_views, height, width, _ = views.images.shape
    if not 0 <= index < n_views:
        raise IndexError(f"index: expected a view in 0 ... {n_views - 1}, got {index}")
    stop = height * width if stop is None else stop
    if not 0 <= start <= stop <= height * width:
        raise BadArgument(f"start, stop: expected 0 <= start <= stop <= {height * width} pixels, got {start}, {stop}")
    pixel = torch.arange(start, stop, device=views.images.device)
    y = torch.div(pixel, width, rounding_mode="floor")
    # One camera for all pixels: a gathered copy of it per ray would be most of the time.
    origin, directions = camera_rays(
        views.c2w[index, None], views.intrinsics[index].expand(len(y), 4), pixel - y * width, y
    )
    times = None if views.times is None else views.times[index].expand(len(y))
    return Rays(origin.expand_as(directions), directions, _per_ray(near, directions), _per_ray(far, directions), times)


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
    images, c2w, intrinsics, times, pixels = views
    return ops.draw_rays(
        images, c2w, intrinsics, key, capacity, near=near, far=far, times=times, pixels=pixels, n_rays=n_rays
    )


def checked_batch(batch: Any) -> RayBatch:
    """What a loader of the user's own gives a training step: a RayBatch of R rays.

    Rays whose direction has no length that float32 can square are inactive: they would stand still, up to ``far``, in one
    cell, and fill all memory with samples of it.

    Raises:
        TypeError, ValueError: naming the tensor, as in ``batch.rays.near``.
    """
    check_instance("batch", batch, RayBatch)
    check_instance("batch.rays", batch.rays, Rays)
    check_tensor("batch.rays.origins", batch.rays.origins, ("R", 3), torch.float32)
    n = len(batch.rays.origins)
    tensors: dict[str, Any] = {f"batch.rays.{name}": tensor for name, tensor in batch.rays._asdict().items()}
    tensors |= {"batch.rgb": batch.rgb, "batch.alpha": batch.alpha, "batch.mask": batch.mask}
    for name, tensor in tensors.items():
        shape = (n, 3) if name in ("batch.rays.origins", "batch.rays.directions", "batch.rgb") else (n,)
        dtype = torch.bool if name == "batch.mask" else torch.float32 if name.startswith("batch.rays") else _COLOURS
        if tensor is not None or name not in _OPTIONAL:
            check_tensor(name, tensor, shape, dtype)
    check_same_device(**tensors)
    rays, limits = batch.rays, torch.finfo(torch.float32)
    squared = rays.directions.square().sum(-1)
    moving = (squared >= limits.tiny) & (squared <= limits.max)
    return batch._replace(rays=rays._replace(far=torch.where(moving, rays.far, rays.near)))


def truth(batch: RayBatch, background: Tensor) -> Tensor:
    """The batch's colours on a background: ``alpha * rgb + (1 - alpha) * background``, or ``rgb`` where all is opaque.

    ``background``: [3] or [R, 3]. A ray that hits nothing is the background exactly.
    """
    if batch.alpha is None:
        return batch.rgb
    # lerp is exact at both ends: a transparent pixel is its background, an opaque one its colour.
    return torch.lerp(background.expand_as(batch.rgb), batch.rgb, batch.alpha[:, None])


def image_truth(image: Tensor, background: Tensor) -> Tensor:
    """One whole image [H, W, 3 or 4] uint8 as float [H, W, 3] on a background [3]; not quantised after compositing."""
    image = image.float() / 255
    if image.shape[-1] == 3:
        return image
    rgb, alpha = image[..., :3], image[..., 3:]
    return alpha * rgb + (1 - alpha) * background


def _per_ray(value: float | Tensor, origins: Tensor) -> Tensor:
    shape = origins.shape[:1]
    return value.to(origins.dtype).expand(shape) if isinstance(value, Tensor) else origins.new_full(shape, value)
