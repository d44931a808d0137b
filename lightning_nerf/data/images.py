"""Reading pictures: any PNG or JPEG as 8-bit RGBA, many at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument

_T = TypeVar("_T")
_U = TypeVar("_U")


def load_images(paths: Sequence[Path], downscale: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Pictures of one size H x W as [V, H // downscale, W // downscale, C] uint8, and (H, W).

    C = 4 if any of them has alpha, else 3. Errors name the file that is unreadable, or of another size than the first.
    """
    first, _ = read_rgba(paths[0])
    height, width = (side // downscale for side in first.shape[:2])
    if not height or not width:
        raise BadArgument(f"{paths[0]}: {first.shape[1]}x{first.shape[0]} pixels are too few for downscale={downscale}")
    images = np.empty((len(paths), height, width, 4), np.uint8)

    def load(i: int) -> bool:
        image, has_alpha = read_rgba(paths[i])
        if image.shape != first.shape:
            raise BadArgument(
                f"{paths[i]}: {image.shape[1]}x{image.shape[0]} pixels, but {paths[0]} has "
                f"{first.shape[1]}x{first.shape[0]}; the images of a split must have one size"
            )
        images[i] = image if downscale == 1 else shrink(image / np.float32(255), downscale)
        return has_alpha

    any_alpha = any(_in_threads(load, range(len(paths))))
    images = images if any_alpha else np.ascontiguousarray(images[..., :3])
    return torch.from_numpy(images), (first.shape[0], first.shape[1])


def load_masks(paths: Sequence[Path | None], height: int, width: int, downscale: int = 1) -> Tensor:
    """Masks of ``height`` x ``width`` pixels as [V, H, W] bool, where 0 in all channels is False; None: all True.

    A shrunk pixel is True only if all pixels that it averages are.
    """

    def load(path: Path | None) -> np.ndarray:
        if path is None:
            return np.ones((height // downscale, width // downscale), bool)
        mask = read_rgba(path)[0][..., :3].max(-1) > 0  # alpha masks nothing
        if mask.shape != (height, width):
            raise BadArgument(f"{path}: a mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of {width}x{height}")
        return _blocks(mask[..., None], downscale).min((1, 3))[..., 0]

    return torch.from_numpy(np.stack(_in_threads(load, paths)))


def read_rgba(path: Path) -> tuple[np.ndarray, bool]:
    """A picture as [H, W, 4] uint8 with straight alpha, and whether the file itself has alpha."""
    image = _read(path)
    if image.dtype == np.uint16:
        image = np.round(image / np.float32(257)).astype(np.uint8)
    elif image.dtype == bool:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype != np.uint8:
        raise BadArgument(f"{path}: expected 8 or 16 bits per channel, got {image.dtype}")
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[-1]
    has_alpha = channels in (2, 4)
    rgba = np.full((*image.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = image[..., : 1 if channels < 3 else 3]
    if has_alpha:
        rgba[..., 3] = image[..., -1]
    return rgba, has_alpha


def shrink(rgba: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor`` x ``factor`` pixels, straight alpha in and out; what is left over is cut off.

    Colours are averaged as they cover, hence weighted by alpha: what is invisible must not bleed into the edges.

    Args:
        rgba: [H, W, 4] float32 in [0, 1].

    Returns:
        [H // factor, W // factor, 4] uint8; black where alpha is 0.
    """
    alpha = rgba[..., 3:]
    premultiplied = np.concatenate([rgba[..., :3] * alpha, alpha], -1)
    mean = _blocks(premultiplied, factor).mean((1, 3), dtype=np.float32)
    mean[..., :3] /= np.maximum(mean[..., 3:], np.float32(1e-6))
    return (mean.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """[H, W, C] as [H // factor, factor, W // factor, factor, C]."""
    height, width = (side // factor for side in image.shape[:2])
    return image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)


def _read(path: Path) -> np.ndarray:
    try:
        image = iio.imread(path, plugin="pillow")
    except Exception as error:  # of many kinds, from any decoder
        raise BadArgument(f"{path}: cannot be read as an image ({error})") from error
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] > 4):
        raise BadArgument(f"{path}: expected one picture with 1 to 4 channels, got an array of shape {image.shape}")
    return image


def _in_threads(function: Callable[[_T], _U], items: Iterable[_T]) -> list[_U]:
    """Decoders release the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))
