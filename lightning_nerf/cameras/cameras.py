"""Posed cameras, and the rays through their pixels.

Cameras follow OpenGL and NeRF-Synthetic: x right, y up, looking along -z. The pixel in column x and row y covers
[x, x + 1) x [y, y + 1), row 0 on top; its ray passes through its center.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import REALS, BadArgument, check_instance, check_integer, check_number, check_tensor
from lightning_nerf.ops.draw_rays import camera_rays, pixel_footprint
from lightning_nerf.types import Rays

LENS_MODELS = ("pinhole", "opencv", "fisheye", "equirectangular")
"""How rays enter a camera, and its coefficients in ``Cameras.lens``, the rest being 0:

- "pinhole": none.
- "opencv": OpenCV's rational radial-tangential lens, k1, k2, p1, p2, k3, k4, k5, k6.
- "fisheye": OpenCV's fisheye, k1, k2, k3, k4 of ``theta_d = theta (1 + k1 theta^2 + ... + k4 theta^8)``.
- "equirectangular": none; columns are longitudes, rows latitudes, and focal lengths are pixels per radian.
"""


class Cameras(NamedTuple):
    """V posed cameras, each with intrinsics, a lens, a size and bounds of its own.

    >>> import torch
    >>> from lightning_nerf import Cameras
    >>> cameras = Cameras.of_one_size(torch.eye(4)[None, :3], torch.tensor([[2.0, 2, 2, 2]]), 4, 4, near=1.0, far=6.0)
    >>> cameras.n_views, cameras.shape(0)
    (1, (4, 4))
    """

    c2w: Tensor  # [V, 3, 4] float32, camera to world: rotation | position
    intrinsics: Tensor  # [V, 4] float32: fx, fy, cx, cy in pixels
    size: Tensor  # [V, 2] int64: width, height in pixels
    bounds: Tensor | None = None  # [V, 2] float32: near and far of every ray; None: the data module's
    times: Tensor | None = None  # [V] float32
    lens_model: Tensor | None = None  # [V] int64, index into LENS_MODELS; None: all are pinholes
    lens: Tensor | None = None  # [V, 8] float32: coefficients of each lens, see LENS_MODELS

    @classmethod
    def of_one_size(
        cls,
        c2w: Tensor,
        intrinsics: Tensor,
        width: int,
        height: int,
        *,
        near: float | None = None,
        far: float | None = None,
        times: Tensor | None = None,
    ) -> Cameras:
        """V cameras of ``width`` x ``height`` pixels; ``intrinsics``: [4] for all of them, or [V, 4]."""
        check_tensor("c2w", c2w, ("V", 3, 4), REALS)
        n = len(c2w)
        check_tensor("intrinsics", intrinsics, (4,) if getattr(intrinsics, "ndim", 0) == 1 else (n, 4), REALS)
        for name, side in (("width", width), ("height", height)):
            check_integer(name, side, 1)
        if (near is None) != (far is None):
            raise BadArgument(f"near, far: expected both or none, got {near}, {far}")
        if times is not None:
            check_tensor("times", times, (n,), torch.float32)
        size = torch.tensor([width, height], device=c2w.device).expand(n, 2).contiguous()
        cameras = cls(c2w.float(), intrinsics.float().expand(n, 4).contiguous(), size, None, times)
        return cameras if near is None or far is None else cameras.bounded(near, far)

    @property
    def n_views(self) -> int:
        """V."""
        return len(self.c2w)

    def map(self, function: Callable[[Tensor], Tensor]) -> Cameras:
        """``function`` of each tensor, say ``lambda t: t[:10]``."""
        return Cameras(*(None if value is None else function(value) for value in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Cameras:
        """These cameras on ``device``."""
        return self.map(lambda t: t.to(device))

    def chosen(self, index: Sequence[int] | slice) -> Cameras:
        """Some of them."""
        return self.map(lambda t: t[index])

    def bounded(self, near: float, far: float) -> Cameras:
        """These cameras with the same bounds for all rays: 0 <= near < far."""
        for name, value in (("near", near), ("far", far)):
            check_number(name, value, "[0, inf)")
        if not near < far:
            raise BadArgument(f"near, far: expected 0 <= near < far, got {near}, {far}")
        return self._replace(bounds=self.c2w.new_tensor([near, far]).expand(self.n_views, 2).contiguous())

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of a camera's picture, as arrays have them."""
        width, height = self.size[index].tolist()
        return height, width


def pixel_rays(cameras: Cameras, index: Tensor, x: Tensor, y: Tensor) -> Rays:
    """Rays from the camera of each given index through the center of its pixel in column x and row y.

    Args:
        cameras: with bounds; on any device, where everything else must be, too.
        index: [R] int64.
        x, y: [R] pixel column and row, integers; a fraction moves the ray off the pixel's center.

    Returns:
        R rays with directions of unit length, so t is a distance (to the camera, not along its axis). Differentiable in
        poses and intrinsics. Indices are not checked on a GPU.
    """
    near, far = checked_bounds(cameras)[index].unbind(-1)
    intrinsics = cameras.intrinsics[index]
    origins, directions = camera_rays(cameras.c2w[index], intrinsics, x, y)
    times = None if cameras.times is None else cameras.times[index]
    return Rays(origins, directions, near, far, times, index, pixel_footprint(intrinsics, x, y))


def image_rays(
    cameras: Cameras, index: int, start: int = 0, stop: int | None = None, shape: tuple[int, int] | None = None
) -> Rays:
    """The rays of one camera's pixels ``start`` to ``stop`` (by default all), row by row: [stop - start].

    ``shape``: the picture's height and width, where the caller knows them; reading them from a GPU waits for it. The rays
    name no training view: they are -1 in ``cameras``.

    >>> import torch
    >>> from lightning_nerf import Cameras
    >>> cameras = Cameras.of_one_size(torch.eye(4)[None, :3], torch.tensor([[2.0, 2, 2, 2]]), 4, 4, near=1.0, far=6.0)
    >>> len(image_rays(cameras, 0).origins)
    16
    """
    checked_cameras("cameras", cameras)
    check_integer("index", index, -(2**63))
    if not 0 <= index < cameras.n_views:
        raise IndexError(f"index: expected a view in 0 ... {cameras.n_views - 1}, got {index}")
    height, width = cameras.shape(index) if shape is None else shape
    stop = height * width if stop is None else stop
    if not 0 <= start <= stop <= height * width:
        raise BadArgument(f"start, stop: expected 0 <= start <= stop <= {height * width} pixels, got {start}, {stop}")
    near, far = checked_bounds(cameras)[index]
    pixel = torch.arange(start, stop, device=cameras.c2w.device)
    y = torch.div(pixel, width, rounding_mode="floor")
    x, n = pixel - y * width, len(pixel)
    # One camera for all pixels: a gathered copy of it per ray would be most of the time.
    intrinsics = cameras.intrinsics[index].expand(n, 4)
    origin, directions = camera_rays(cameras.c2w[index, None], intrinsics, x, y)
    times = None if cameras.times is None else cameras.times[index].expand(n)
    camera = torch.full((), -1, device=pixel.device).expand(n)
    footprint = pixel_footprint(intrinsics, x, y)
    return Rays(origin.expand_as(directions), directions, near.expand(n), far.expand(n), times, camera, footprint)


def checked_cameras(name: str, cameras: Cameras) -> Cameras:
    """Cameras of V views whose tensors have the shapes and types that :class:`Cameras` states.

    Raises:
        BadType, BadArgument: naming the tensor, as in ``cameras.intrinsics``.
    """
    check_instance(name, cameras, Cameras)
    check_tensor(f"{name}.c2w", cameras.c2w, ("V", 3, 4), torch.float32)
    n = cameras.n_views
    check_tensor(f"{name}.intrinsics", cameras.intrinsics, (n, 4), torch.float32)
    check_tensor(f"{name}.size", cameras.size, (n, 2), torch.int64)
    if cameras.bounds is not None:
        check_tensor(f"{name}.bounds", cameras.bounds, (n, 2), torch.float32)
    if cameras.times is not None:
        check_tensor(f"{name}.times", cameras.times, (n,), torch.float32)
    return cameras


def check_values(name: str, cameras: Cameras) -> None:
    """Raise a BadArgument where a number in cameras on the CPU makes rays of no meaning, naming the first such view.

    Poses must be finite and invertible, focal lengths positive, 0 <= near < far, times finite.
    """
    rotation, (fx, fy, _, _) = cameras.c2w[:, :, :3].double(), cameras.intrinsics.unbind(-1)
    axes = torch.nn.functional.normalize(rotation, dim=1, eps=0.0)  # a pose may be scaled
    _refuse(f"{name}.c2w", "finite numbers", cameras.c2w, ~cameras.c2w.isfinite().flatten(1).all(1))
    _refuse(f"{name}.c2w", "an invertible rotation", cameras.c2w, ~(torch.linalg.det(axes).abs() > 1e-6))
    meaningful = cameras.intrinsics.isfinite().all(1) & (fx > 0) & (fy > 0)
    _refuse(f"{name}.intrinsics", "finite fx, fy > 0, cx, cy", cameras.intrinsics, ~meaningful)
    if cameras.bounds is not None:
        check_bounds(f"{name}.bounds", cameras.bounds)
    if cameras.times is not None:
        _refuse(f"{name}.times", "finite numbers", cameras.times, ~cameras.times.isfinite())


def check_bounds(name: str, bounds: Tensor) -> None:
    """Finite 0 <= near < far in each of [V, 2]."""
    near, far = bounds.unbind(-1)
    _refuse(name, "finite numbers, 0 <= near < far", bounds, ~((near >= 0) & (near < far) & far.isfinite()))


def _refuse(name: str, expected: str, values: Tensor, bad: Tensor) -> None:
    if bool(bad.any()):
        view = int(bad.nonzero()[0, 0])
        raise BadArgument(f"{name}: expected {expected}, got {values[view].tolist()} in view {view}")


def checked_bounds(cameras: Cameras) -> Tensor:
    """[V, 2]; an error where the cameras have none."""
    if cameras.bounds is None:
        raise BadArgument("cameras.bounds: expected near and far of every view, got None; see Cameras.bounded")
    return cameras.bounds
