"""Rays through randomly drawn pixels of posed images, and what is behind them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import _library
from lightning_nerf.ops.random import STREAM_BACKGROUND, STREAM_RAYS, random_uniform
from lightning_nerf.ops.random import reference as random_reference
from lightning_nerf.types import RayBatch, Rays

_ALWAYS = 2**63 - 1


def draw_rays(
    images: Tensor,
    c2w: Tensor,
    intrinsics: Tensor,
    key: Tensor,
    capacity: int,
    *,
    near: float,
    far: float,
    times: Tensor | None = None,
    pixels: Tensor | None = None,
    n_rays: Tensor | None = None,
) -> RayBatch:
    """Rays through pixels drawn uniformly, with replacement, from all drawable pixels of all images.

    Ray i goes through pixel ``floor(size * f_i)`` of ``pixels``, or of all of them, where f_i is the 48-bit fraction of the
    first two numbers in row i of :func:`~lightning_nerf.ops.random.random_uniform`'s stream ``STREAM_RAYS``: a function of
    ``key`` alone. A smaller ``n_rays`` or ``capacity`` gives the first rays of the larger draw. No integer is favoured by
    more than size / 2^48. See :func:`camera_rays` for the geometry; directions have unit length.

    Args:
        images: [V, H, W, C] uint8, contiguous; C = 3 (rgb) or 4 (rgb and straight alpha).
        c2w: [V, 3, 4] float32, camera to world.
        intrinsics: [V, 4] float32: fx, fy, cx, cy in pixels.
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; read on the device, as is ``n_rays``: nothing is
            synchronised, so a CUDA graph can capture the draw.
        capacity: R, 0 <= R < 2^31.
        near, far: of the active rays; finite.
        times: [V] float32.
        pixels: [P] int64, drawable pixels as indices into [V * H * W], which are not checked; None: all.
        n_rays: [] int32 or int64: rays from this one on are inactive (``near = far = 0``) and False in ``mask``. None: all
            are active, and the batch has no mask.

    Returns:
        R rays with ``rgb`` (not yet composited), ``alpha`` where the images have it, and ``image_index``.

    The kernels have no derivative. Where ``c2w``, ``intrinsics`` or ``times`` require a gradient, as for cameras that are
    learned, :func:`reference` computes the same, differentiable any number of times and slower.
    """
    check_tensor("images", images, ("V", "H", "W", "C"), torch.uint8)
    n_views, _, _, channels = images.shape
    if channels not in (3, 4):
        raise BadArgument(f"images: expected 3 or 4 channels, got {channels}")
    if not images.is_contiguous():  # a copy of all images each step would go unnoticed
        raise BadArgument(f"images: expected a contiguous tensor, got strides {images.stride()}")
    check_tensor("c2w", c2w, (n_views, 3, 4), torch.float32)
    check_tensor("intrinsics", intrinsics, (n_views, 4), torch.float32)
    check_tensor("key", key, (3,), torch.int64)
    if times is not None:
        check_tensor("times", times, (n_views,), torch.float32)
    if pixels is not None:
        check_tensor("pixels", pixels, ("P",), torch.int64)
    if n_rays is not None:
        check_tensor("n_rays", n_rays, (), (torch.int32, torch.int64))
    check_same_device(key=key, images=images, c2w=c2w, intrinsics=intrinsics, times=times, pixels=pixels, n_rays=n_rays)
    if not (math.isfinite(near) and math.isfinite(far)):
        raise BadArgument(f"near, far: expected finite numbers, got {near}, {far}")
    if not 0 <= capacity < 2**31:
        raise BadArgument(f"capacity: expected 0 <= capacity < 2**31, got {capacity}")
    if capacity > 0 and (images.numel() == 0 or (pixels is not None and pixels.numel() == 0)):
        raise BadArgument("images, pixels: expected at least one pixel to draw, got none")
    if n_rays is not None and n_rays.dtype is not torch.int32:
        n_rays = n_rays.clamp(0, capacity).int()

    op = reference if needs_grad(c2w, intrinsics, times) else torch.ops.lightning_nerf.draw_rays
    origins, directions, nears, fars, ray_times, rgb, alpha, mask, image_index = op(
        images,
        c2w.contiguous(),
        intrinsics.contiguous(),
        None if times is None else times.contiguous(),
        None if pixels is None else pixels.contiguous(),
        key.contiguous(),
        n_rays,
        capacity,
        float(near),
        float(far),
    )
    rays = Rays(origins, directions, nears, fars, None if times is None else ray_times)
    return RayBatch(rays, rgb, None if channels == 3 else alpha, None if n_rays is None else mask, image_index)


def draw_background(key: Tensor, n: int, *, colour: tuple[float, float, float] | None, random_steps: int = 0) -> Tensor:
    """Colours [n, 3] float32 behind n rays: random in steps below ``random_steps``, else ``colour``.

    Random ones are :func:`~lightning_nerf.ops.random.random_uniform`'s stream ``STREAM_BACKGROUND``, another colour for
    each ray and step.

    Args:
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; its step is read on the device: nothing is
            synchronised, and a CUDA graph can capture the draw.
        n: rays, 0 <= n < 2^31.
        colour: red, green, blue. None: random in every step.
        random_steps: >= 0.
    """
    check_tensor("key", key, (3,), torch.int64)
    if not 0 <= n < 2**31:
        raise BadArgument(f"n: expected 0 <= n < 2**31, got {n}")
    if random_steps < 0:
        raise BadArgument(f"random_steps: expected >= 0, got {random_steps}")
    if colour is None:
        colour, random_steps = (0.0, 0.0, 0.0), _ALWAYS
    return torch.ops.lightning_nerf.draw_background(key.contiguous(), n, random_steps, *map(float, colour))


def camera_rays(c2w: Tensor, intrinsics: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [R, 3] of the rays of pinhole cameras through the centres of pixels.

    Cameras follow OpenGL: x right, y up, looking along -z. The pixel in column x and row y covers [x, x + 1) x [y, y + 1).

    Args:
        c2w: [R, 3, 4], camera to world: rotation | position.
        intrinsics: [R, 4]: fx, fy, cx, cy in pixels.
        x, y: [R] column and row, integers; a fraction moves the ray off the pixel's centre.
    """
    fx, fy, cx, cy = intrinsics.unbind(-1)
    camera = torch.stack([(x + 0.5 - cx) / fx, (cy - 0.5 - y) / fy, torch.full_like(cx, -1.0)], -1)
    directions = (c2w[:, :, :3] * camera[:, None, :]).sum(-1)  # no matmul: TF32 would cost a thousandth of a radian
    return c2w[:, :, 3].clone(memory_format=torch.contiguous_format), directions / directions.norm(dim=-1, keepdim=True)


def draw_index(key: Tensor, n: int, size: int) -> Tensor:
    """n uniform integers in [0, size), [n] int64.

    One float32 has 2^24 values, fewer than the pixels of many scenes; two make a 48-bit fraction, exact in float64. Its
    largest value, 1 - 2^-48, times size stays below size after rounding.
    """
    high, low = random_uniform(key, STREAM_RAYS, n, 2).double().unbind(-1)
    return torch.add(high, low, alpha=2.0**-24).mul_(size).long()


def reference(
    images: Tensor,
    c2w: Tensor,
    intrinsics: Tensor,
    times: Tensor | None,
    pixels: Tensor | None,
    key: Tensor,
    n_rays: Tensor | None,
    capacity: int,
    near: float,
    far: float,
) -> tuple[Tensor, ...]:
    n_views, height, width, channels = images.shape
    index = draw_index(key, capacity, n_views * height * width if pixels is None else pixels.shape[0])
    flat = index if pixels is None else pixels[index]
    row = torch.div(flat, width, rounding_mode="floor")  # of all images' rows
    image_index = torch.div(row, height, rounding_mode="floor")
    x, y = flat - row * width, row - image_index * height
    origins, directions = camera_rays(c2w[image_index], intrinsics[image_index], x, y)
    nears, fars = (c2w.new_full((capacity,), value) for value in (near, far))
    mask = torch.empty(0, dtype=torch.bool, device=key.device)
    if n_rays is not None:
        mask = torch.arange(capacity, device=key.device) < n_rays
        nears, fars = nears * mask, fars * mask  # finite: inf * 0 would be NaN
    ray_times = c2w.new_empty(0) if times is None else times[image_index]
    colours = images.view(-1, channels)[flat]
    rgb = colours[:, :3] / 255
    alpha = colours[:, 3] / 255 if channels == 4 else rgb.new_empty(0)
    return origins, directions, nears, fars, ray_times, rgb, alpha, mask, image_index


def background_reference(key: Tensor, n: int, random_steps: int, red: float, green: float, blue: float) -> Tensor:
    colour = torch.tensor([red, green, blue]).to(key.device)
    return torch.where(key[2] < random_steps, random_reference(key, STREAM_BACKGROUND, n, 3), colour)


def fake(
    images: Tensor,
    c2w: Tensor,
    intrinsics: Tensor,
    times: Tensor | None,
    pixels: Tensor | None,
    key: Tensor,
    n_rays: Tensor | None,
    capacity: int,
    near: float,
    far: float,
) -> tuple[Tensor, ...]:
    def per_ray(*shape: int) -> Tensor:
        return c2w.new_empty(shape)

    return (
        per_ray(capacity, 3),
        per_ray(capacity, 3),
        per_ray(capacity),
        per_ray(capacity),
        per_ray(0 if times is None else capacity),
        per_ray(capacity, 3),
        per_ray(capacity if images.shape[3] == 4 else 0),
        key.new_empty(0 if n_rays is None else capacity, dtype=torch.bool),
        key.new_empty(capacity),
    )


_library.define(
    "draw_rays",
    "(Tensor images, Tensor c2w, Tensor intrinsics, Tensor? times, Tensor? pixels, Tensor key, Tensor? n_rays, "
    "int capacity, float near, float far) -> (Tensor origins, Tensor directions, Tensor nears, Tensor fars, "
    "Tensor ray_times, Tensor rgb, Tensor alpha, Tensor mask, Tensor image_index)",
    reference,
    fake,
)
_library.define(
    "draw_background",
    "(Tensor key, int n, int random_steps, float red, float green, float blue) -> Tensor",
    background_reference,
    lambda key, n, *_: key.new_empty((n, 3), dtype=torch.float32),
)
