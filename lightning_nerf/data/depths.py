"""Depths of training pixels, read where a loss wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.picture_memory import depths_on_device
from lightning_nerf.data.scene import Scene
from lightning_nerf.ops.draw_rays import Pixels, draw_from_views, draw_index
from lightning_nerf.ops.lenses import EQUIRECTANGULAR
from lightning_nerf.types import Rays

_LEAST_COSINE = 1e-3  # of a ray and its camera's axis; beyond it a depth along the axis says nothing


class TrainingDepths:
    """The depths of the training pixels, read when a draw first wants them and kept, for one device at a time.

    Attributes:
        wanted: whether draws give rays their depths, where training views have any; a module says so for its losses.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._kept: Tensor | None = None

    def forget(self) -> None:
        """Read them again when next asked for."""
        self._kept = None

    def on(self, device: torch.device, scene: Scene, budget_gib: float | None) -> Tensor | None:
        """[P] of a scene on the CPU, for draws on ``device``; None: there are none, or none is wanted."""
        if not self.wanted or scene.depth_paths is None:
            return None
        if self._kept is None or self._kept.device != device:
            depths = read_depths(scene)
            assert depths is not None
            self._kept = depths_on_device(depths, device, budget_gib)
        return self._kept


def read_depths(scene: Scene) -> Tensor | None:
    """Depths [P] float32 of all pixels of a scene, in its units; 0 where they are not known. None: no view has a file.

    They are along the camera's axis, as files have them; of an equirectangular picture, along the ray. Integers in a file
    are multiples of ``Scene.depth_unit``, floats (``.npy``, or TIFF) are lengths. What is not positive and finite is not
    known. A file of another size than its picture's gives each pixel the depth that is nearest to it.

    Raises:
        BadArgument: a file that cannot be read, or has another shape than its picture.
    """
    if scene.depth_paths is None:
        return None
    scale = 1.0
    if scene.to_world is not None:  # which takes lengths of the scene to those of the files
        scale = 1 / float(torch.linalg.det(scene.to_world[:3, :3].double()).abs() ** (1 / 3))
    depths = torch.zeros(len(scene.images.colors))
    for view, path in enumerate(scene.depth_paths):
        if path is not None:
            first, last = scene.images.offsets[view : view + 2].tolist()
            depths[first:last] = scale * _read(path, scene.cameras.shape(view), scene.depth_unit).flatten()
    return depths


def ray_depths(pixels: Pixels, depths: Tensor, rays: Rays, key: Tensor, capacity: int, open_views: Tensor | None) -> Tensor:
    """Where drawn rays meet what was measured, [R], as t along them; 0 where that is not known.

    Args:
        pixels, key, capacity, open_views: of :func:`~lightning_nerf.ops.draw_rays.draw_rays`.
        depths: [P], of :func:`read_depths`.
        rays: what the draw gave.
    """
    if open_views is not None:
        pixel, _ = draw_from_views(pixels, key, capacity, open_views)
    else:
        drawable = pixels.drawable
        index = draw_index(key, capacity, len(pixels.colors) if drawable is None else len(drawable))
        pixel = index if drawable is None else drawable[index]
    assert rays.cameras is not None
    cosine = -(rays.directions * pixels.c2w[rays.cameras, :, 2]).sum(-1)
    if pixels.lens_model is not None:
        cosine = cosine.masked_fill(pixels.lens_model[rays.cameras] == EQUIRECTANGULAR, 1.0)
    return torch.where(cosine > _LEAST_COSINE, depths[pixel] / cosine, 0.0)


def _read(path: Path, shape: tuple[int, int], unit: float) -> Tensor:
    """Depths [h, w] of one picture, in the files' units."""
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                values = np.asarray(picture)
    except Exception as error:  # of many kinds, from any decoder
        raise BadArgument(f"{path}: cannot be read as depths ({error})") from error
    values = values.squeeze()
    height, width = shape
    if values.ndim != 2 or abs(values.shape[0] * width - values.shape[1] * height) > max(*values.shape, height, width):
        got = "x".join(map(str, values.shape[::-1]))
        raise BadArgument(f"{path}: expected a depth for each pixel of {width}x{height}, got {got}")
    if values.shape != shape:
        rows, columns = (((np.arange(n) + 0.5) * has / n).astype(int) for n, has in zip(shape, values.shape, strict=True))
        values = values[rows][:, columns]
    depths = torch.from_numpy(values.astype(np.float32)) * (1.0 if np.issubdtype(values.dtype, np.floating) else unit)
    return torch.where(depths.isfinite() & (depths > 0), depths, 0.0)
