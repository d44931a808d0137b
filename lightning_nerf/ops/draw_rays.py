"""Rays through randomly drawn pixels of posed images, and what is behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops.camera_rays import camera_rays, pixel_footprint
from lightning_nerf.ops.lens_rays import learned_lens_view, lens_view
from lightning_nerf.ops.lenses import Lens
from lightning_nerf.ops.memory import check_fits
from lightning_nerf.ops.random import STREAM_BACKGROUND, STREAM_RAYS, random_uniform
from lightning_nerf.ops.random import reference as random_reference
from lightning_nerf.types import RayBatch, Rays

_BYTES_OF_RAY = 64  # in a batch
_ALWAYS = 2**63 - 1


class Pixels(NamedTuple):
    """P pixels of V views of any sizes, one after the other, and the views' cameras: what a draw reads, all on one
    device.
    """

    colors: Tensor  # [P, C] uint8, contiguous; C = 3 (rgb) or 4 (rgb and straight alpha)
    offsets: Tensor  # [V + 1] int64: view v owns the pixels offsets[v] to offsets[v + 1], row by row
    drawable: Tensor | None  # [M] int64, ascending indices of the pixels that may be drawn, not checked; None: all
    c2w: Tensor  # [V, 3, 4] float32, camera to world
    intrinsics: Tensor  # [V, 4] float32: fx, fy, cx, cy in pixels
    size: Tensor  # [V, 2] int64: width, height
    bounds: Tensor  # [V, 2] float32: near, far, finite
    times: Tensor | None  # [V] float32
    lens_model: Tensor | None = None  # [V] int64, index into cameras.LENS_MODELS; None: all are pinholes
    lens: Tensor | None = None  # [V, 8] float32, coefficients; drawable must leave out pixels that the lens does not see


def draw_rays(
    pixels: Pixels, key: Tensor, capacity: int, n_rays: Tensor | None = None, open_views: Tensor | None = None
) -> RayBatch:
    """Rays through pixels drawn uniformly, with replacement, from all drawable pixels of all views, or of open ones.

    Ray i goes through pixel ``floor(M * f_i)`` of the drawable ones, where f_i is the 48-bit fraction of the first two
    numbers in row i of :func:`~lightning_nerf.ops.random.random_uniform`'s stream ``STREAM_RAYS``: a function of ``key``
    alone. A smaller ``n_rays`` or ``capacity`` gives the first rays of the larger draw. No integer is favored by more than
    M / 2^48. See :func:`~lightning_nerf.ops.camera_rays.camera_rays` for the geometry; directions have unit length.

    Args:
        pixels: see :class:`Pixels`.
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; read on the device, as is ``n_rays``: nothing is
            synchronized, so a CUDA graph can capture the draw.
        capacity: R, 0 <= R < 2^31.
        n_rays: [] int32 or int64: rays from this one on are inactive (``near = far = 0``) and False in ``mask``. None: all
            are active, and the batch has no mask. Inactive rays are black: their pixels are not read.
        open_views: [V] bool, the views to draw from; read on the device. M is then their number of drawable pixels. If they
            have none, all rays are inactive; the batch has a mask. None: all views.

    Returns:
        R rays with ``rgb`` (not yet composited) and ``alpha`` where the images have it; rays know their camera and
        footprint.

    The kernels have no derivative. Where ``c2w``, ``intrinsics``, ``lens`` or ``times`` require a gradient, as for cameras
    that are learned, :func:`reference` computes the same, slower, and differentiable any number of times (through a lens:
    three times). Likewise for ``open_views``, which the kernels do not know.
    """
    _check(pixels, key, n_rays, capacity, open_views)
    if n_rays is not None and n_rays.dtype is not torch.int32:
        n_rays = n_rays.clamp(0, capacity).int()
    p = Pixels(*(None if value is None else value.contiguous() for value in pixels))  # type: ignore[arg-type]
    op = torch.ops.lightning_nerf.draw_rays
    if open_views is not None or needs_grad(pixels.c2w, pixels.intrinsics, pixels.times, pixels.lens):
        op = partial(reference, open_views=open_views, view=learned_lens_view)
    origins, directions, near, far, times, footprint, rgb, alpha, mask, cameras = op(*p, key.contiguous(), n_rays, capacity)
    has_mask = n_rays is not None or open_views is not None
    rays = Rays(origins, directions, near, far, None if pixels.times is None else times, cameras, footprint)
    return RayBatch(rays, rgb, None if pixels.colors.shape[1] == 3 else alpha, mask if has_mask else None)


def _check(pixels: Pixels, key: Tensor, n_rays: Tensor | None, capacity: int, open_views: Tensor | None) -> None:
    colors, offsets, drawable, c2w, intrinsics, size, bounds, times, lens_model, lens = pixels
    check_tensor("colors", colors, ("P", "C"), torch.uint8)
    if colors.shape[1] not in (3, 4):
        raise BadArgument(f"colors: expected 3 or 4 channels, got {colors.shape[1]}")
    if not colors.is_contiguous():  # a copy of all images each step would go unnoticed
        raise BadArgument(f"colors: expected a contiguous tensor, got strides {colors.stride()}")
    check_tensor("c2w", c2w, ("V", 3, 4), torch.float32)
    n_views = c2w.shape[0]
    check_tensor("offsets", offsets, (n_views + 1,), torch.int64)
    check_tensor("intrinsics", intrinsics, (n_views, 4), torch.float32)
    check_tensor("size", size, (n_views, 2), torch.int64)
    check_tensor("bounds", bounds, (n_views, 2), torch.float32)
    check_tensor("key", key, (3,), torch.int64)
    if times is not None:
        check_tensor("times", times, (n_views,), torch.float32)
    if (lens_model is None) != (lens is None):
        raise BadArgument("lens_model, lens: expected both or none")
    if lens_model is not None:
        check_tensor("lens_model", lens_model, (n_views,), torch.int64)
        check_tensor("lens", lens, (n_views, 8), torch.float32)
    if drawable is not None:
        check_tensor("drawable", drawable, ("M",), torch.int64)
    if n_rays is not None:
        check_tensor("n_rays", n_rays, (), (torch.int32, torch.int64))
    if open_views is not None:
        check_tensor("open_views", open_views, (n_views,), torch.bool)
    check_same_device(key=key, n_rays=n_rays, open_views=open_views, **pixels._asdict())
    if not 0 <= capacity < 2**31:
        raise BadArgument(f"capacity: expected 0 <= capacity < 2**31, got {capacity}")
    if key.device.type == "cpu" and not torch.compiler.is_compiling():
        check_fits("capacity", capacity, _BYTES_OF_RAY, key.device, what="rays")
    if capacity > 0 and (colors.numel() == 0 or (drawable is not None and drawable.numel() == 0)):
        raise BadArgument("colors, drawable: expected at least one pixel to draw, got none")


def draw_background(key: Tensor, n: int, *, color: tuple[float, float, float] | None, random_steps: int = 0) -> Tensor:
    """Colors [n, 3] float32 behind n rays: random in steps below ``random_steps``, else ``color``.

    Random ones are :func:`~lightning_nerf.ops.random.random_uniform`'s stream ``STREAM_BACKGROUND``, another color for
    each ray and step.

    Args:
        key: [3] int64, see :func:`~lightning_nerf.ops.random.make_key`; its step is read on the device: nothing is
            synchronized, and a CUDA graph can capture the draw.
        n: rays, 0 <= n < 2^31.
        color: red, green, blue. None: random in every step.
        random_steps: >= 0.
    """
    check_tensor("key", key, (3,), torch.int64)
    if not 0 <= n < 2**31:
        raise BadArgument(f"n: expected 0 <= n < 2**31, got {n}")
    if random_steps < 0:
        raise BadArgument(f"random_steps: expected >= 0, got {random_steps}")
    if color is None:
        color, random_steps = (0.0, 0.0, 0.0), _ALWAYS
    return torch.ops.lightning_nerf.draw_background(key.contiguous(), n, random_steps, *map(float, color))


def draw_index(key: Tensor, n: int, size: int | Tensor) -> Tensor:
    """n uniform integers in [0, size), [n] int64; ``size`` [] int64 stays on its device.

    One float32 has 2^24 values, fewer than the pixels of many scenes; two make a 48-bit fraction, exact in float64. Its
    largest value, 1 - 2^-48, times size stays below size after rounding.
    """
    high, low = random_uniform(key, STREAM_RAYS, n, 2).double().unbind(-1)
    return torch.add(high, low, alpha=2.0**-24).mul_(size).long()


def draw_from_views(pixels: Pixels, key: Tensor, capacity: int, open_views: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [R] int64 drawn uniformly from the drawable ones of open views, and whether there are any, [] bool."""
    offsets, drawable = pixels.offsets, pixels.drawable
    starts = offsets if drawable is None else torch.searchsorted(drawable, offsets)  # of each view in the list to draw from
    counts = starts.diff() * open_views
    ends = counts.cumsum(0)  # of open views' pixels, closed views left out
    index = draw_index(key, capacity, ends[-1])
    view = torch.searchsorted(ends, index, right=True).clamp(max=len(counts) - 1)  # without open pixels it is past the last
    place = starts[view] + index - (ends - counts)[view]
    listed = place.clamp(max=(len(pixels.colors) if drawable is None else len(drawable)) - 1)
    return listed if drawable is None else drawable[listed], ends[-1] > 0


def reference(
    colors: Tensor,
    offsets: Tensor,
    drawable: Tensor | None,
    c2w: Tensor,
    intrinsics: Tensor,
    size: Tensor,
    bounds: Tensor,
    times: Tensor | None,
    lens_model: Tensor | None,
    lens: Tensor | None,
    key: Tensor,
    n_rays: Tensor | None,
    capacity: int,
    open_views: Tensor | None = None,
    view: Callable[[Tensor, Tensor, Lens, Tensor, Tensor], tuple[Tensor, Tensor]] = lens_view,
) -> tuple[Tensor, ...]:
    is_active: Tensor | None = None
    if open_views is None or capacity == 0:
        index = draw_index(key, capacity, colors.shape[0] if drawable is None else drawable.shape[0])
        pixel = index if drawable is None else drawable[index]
    else:
        pixels = Pixels(colors, offsets, drawable, c2w, intrinsics, size, bounds, times)
        pixel, found = draw_from_views(pixels, key, capacity, open_views)
        is_active = found.expand(capacity)
    camera = torch.searchsorted(offsets, pixel, right=True) - 1
    width, inside = size[camera, 0], pixel - offsets[camera]
    y = torch.div(inside, width, rounding_mode="floor")
    x = inside - y * width
    if lens_model is None or lens is None:
        origins, directions = camera_rays(c2w[camera], intrinsics[camera], x, y)
        footprint = pixel_footprint(intrinsics[camera], x, y)
    else:
        origins = c2w[camera][:, :, 3].contiguous()
        directions, footprint = view(c2w[camera], intrinsics[camera], Lens(lens_model[camera], lens[camera]), x, y)
    near, far = bounds[camera].unbind(-1)
    if n_rays is not None:
        wanted = torch.arange(capacity, device=key.device) < n_rays
        is_active = wanted if is_active is None else wanted & is_active
    if is_active is not None:
        near, far = near * is_active, far * is_active  # finite: inf * 0 would be NaN
    mask = torch.empty(0, dtype=torch.bool, device=key.device) if is_active is None else is_active.contiguous()
    ray_times = c2w.new_empty(0) if times is None else times[camera]
    drawn = colors[pixel].float()
    if is_active is not None:
        drawn = drawn * is_active[:, None]
    rgb = drawn[:, :3] / 255
    alpha = drawn[:, 3] / 255 if colors.shape[1] == 4 else rgb.new_empty(0)
    return origins, directions, near, far, ray_times, footprint, rgb, alpha, mask, camera


def background_reference(key: Tensor, n: int, random_steps: int, red: float, green: float, blue: float) -> Tensor:
    color = torch.tensor([red, green, blue], dtype=torch.float32).to(key.device)
    return torch.where(key[2] < random_steps, random_reference(key, STREAM_BACKGROUND, n, 3), color)


def fake(
    colors: Tensor,
    offsets: Tensor,
    drawable: Tensor | None,
    c2w: Tensor,
    intrinsics: Tensor,
    size: Tensor,
    bounds: Tensor,
    times: Tensor | None,
    lens_model: Tensor | None,
    lens: Tensor | None,
    key: Tensor,
    n_rays: Tensor | None,
    capacity: int,
) -> tuple[Tensor, ...]:
    def per_ray(*shape: int) -> Tensor:
        return c2w.new_empty(shape)

    return (
        per_ray(capacity, 3),
        per_ray(capacity, 3),
        per_ray(capacity),
        per_ray(capacity),
        per_ray(0 if times is None else capacity),
        per_ray(capacity),
        per_ray(capacity, 3),
        per_ray(capacity if colors.shape[1] == 4 else 0),
        key.new_empty(0 if n_rays is None else capacity, dtype=torch.bool),
        key.new_empty(capacity),
    )


library.define(
    "draw_rays",
    "(Tensor colors, Tensor offsets, Tensor? drawable, Tensor c2w, Tensor intrinsics, Tensor size, Tensor bounds, "
    "Tensor? times, Tensor? lens_model, Tensor? lens, Tensor key, Tensor? n_rays, int capacity) "
    "-> (Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor ray_times, "
    "Tensor footprint, Tensor rgb, Tensor alpha, Tensor mask, Tensor camera)",
    reference,
    fake,
)
library.define(
    "draw_background",
    "(Tensor key, int n, int random_steps, float red, float green, float blue) -> Tensor",
    background_reference,
    lambda key, n, *_: key.new_empty((n, 3), dtype=torch.float32),
)
