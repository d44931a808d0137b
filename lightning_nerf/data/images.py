"""Reading pictures: any PNG or JPEG as 8-bit RGBA, many at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_nerf.checks import BadArgument

_T = TypeVar("_T")
_U = TypeVar("_U")
_ORIENTATION = 0x0112  # EXIF's tag
_ANIMATED = ("GIF", "PNG", "WEBP")  # more pictures in other formats are pages, or previews as phones write them into JPEG


def read_pictures(paths: Sequence[Path], downscale: int = 1) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Pictures of any sizes as [H // downscale, W // downscale, C] uint8 each, and their (H, W) before shrinking.

    C = 4 for all if any of them has alpha, else 3. What is left over at the right and the bottom is cut off.

    Raises:
        ValueError: naming the file that is unreadable, or has fewer pixels than ``downscale`` along a side.
    """

    def read(path: Path) -> tuple[Tensor, tuple[int, int]]:
        rgba, has_alpha = read_rgba(path)
        height, width = rgba.shape[:2]
        if min(height, width) < downscale:
            raise BadArgument(f"{path}: {width}x{height} pixels are too few for downscale={downscale}")
        if downscale > 1:
            rgba = shrink(rgba / np.float32(255), downscale)
        return torch.from_numpy(rgba if has_alpha else np.ascontiguousarray(rgba[..., :3])), (height, width)

    read_ones = _in_threads(read, paths)
    pictures = [picture for picture, _ in read_ones]
    if any(picture.shape[-1] == 4 for picture in pictures):
        pictures = [p if p.shape[-1] == 4 else torch.nn.functional.pad(p, (0, 1), value=255) for p in pictures]
    return pictures, [size for _, size in read_ones]


def read_masks(paths: Sequence[Path | None], sizes: Sequence[tuple[int, int]], downscale: int = 1) -> list[Tensor]:
    """Masks as [H // downscale, W // downscale] bool each, where 0 in all color channels is False; None: all True.

    A shrunk pixel is True only if all pixels that it averages are. So is one of a mask that is larger than its picture.

    Args:
        paths: a file, or None, for each picture.
        sizes: (H, W) of the pictures before shrinking, which masks must have, too, or be larger and of the same shape.
        downscale: as of :func:`read_pictures`.
    """

    def read(mask: tuple[Path | None, tuple[int, int]]) -> Tensor:
        path, (height, width) = mask
        if path is None:
            return torch.ones((height // downscale, width // downscale), dtype=torch.bool)
        drawable = read_rgba(path)[0][..., :3].max(-1) > 0  # alpha masks nothing
        if drawable.shape != (height, width) and is_scaled((width, height), drawable.shape[::-1]):
            drawable = _shrunk(drawable, width, height)
        if drawable.shape != (height, width):
            got = f"{drawable.shape[1]}x{drawable.shape[0]}"
            raise BadArgument(f"{path}: a mask of {got} pixels for an image of {width}x{height}")
        return torch.from_numpy(_blocks(drawable[..., None], downscale).min((1, 3))[..., 0])

    return _in_threads(read, list(zip(paths, sizes, strict=True)))


def is_scaled(small: tuple[int, int], large: tuple[int, int]) -> bool:
    """Can a picture of ``small`` (width, height) be one of ``large`` that was shrunk, with sides rounded up or down?"""
    factor = max(large[0] / small[0], large[1] / small[1])
    return factor >= 1.5 and all(abs(big / factor - side) <= 1.001 for side, big in zip(small, large, strict=True))


def _shrunk(drawable: np.ndarray, width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(drawable.astype(np.uint8) * 255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)) == 255


class PictureKind(NamedTuple):
    """What a picture's header says: sides in pixels, and whether the file itself has alpha."""

    width: int
    height: int
    has_alpha: bool


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture's file; whatever a decoder says of it becomes one error."""
    try:
        with Image.open(path) as picture:
            yield picture
    except BadArgument:
        raise
    except Exception as error:  # of many kinds, from any decoder
        raise BadArgument(f"{path}: cannot be read as an image ({error})") from error


def picture_kind(path: Path) -> PictureKind:
    """A picture's kind, without decoding it where that can be."""
    with _opened(path) as picture:
        if picture.mode == "P":
            picture.load()  # a palette may get its alpha late
        width, height = picture.size
        return PictureKind(width, height, _has_alpha(picture))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header."""
    with _opened(path) as picture:
        return picture.size


def picture_turns(path: Path) -> int:
    """By how many quarter turns, clockwise, a picture's EXIF orientation wants it to be shown."""
    try:
        with Image.open(path) as picture:
            return {6: 1, 3: 2, 8: 3}.get(picture.getexif().get(_ORIENTATION, 1), 0)
    except Exception:  # reading the picture will say it better
        return 0


def read_rgba(path: Path) -> tuple[np.ndarray, bool]:
    """A picture as [H, W, 4] uint8 with straight alpha, and whether the file itself has alpha.

    Alpha is a channel, a palette's, or the one color that a PNG calls transparent. CMYK becomes RGB. An EXIF orientation
    is not applied, as tools that write camera files do not apply it.
    """
    with _opened(path) as picture:
        if picture.format in _ANIMATED and getattr(picture, "is_animated", False):
            raise BadArgument(f"{path}: expected one picture, got {getattr(picture, 'n_frames', 'several')}")
        # Of 16 bits per channel Pillow keeps the upper 8 in RGB, but leaves the transparent color as it is.
        is_deep = picture.mode == "RGB" and "16" in str(getattr(picture, "tile", None))
        picture.load()
        if picture.mode in ("I", "F") and picture.format != "PNG":
            raise BadArgument(f"{path}: expected 8 or 16 bits per channel, got {np.asarray(picture).dtype}")
        if picture.mode == "LAB":  # Pillow would take its channels for red, green and blue
            raise BadArgument(f"{path}: expected RGB, grey, CMYK or a palette, got LAB")
        return _rgba(picture, is_deep)


def _rgba(picture: Image.Image, is_deep: bool) -> tuple[np.ndarray, bool]:
    transparent = picture.info.get("transparency")
    if picture.mode[0] == "I":  # 16-bit grey; plain "I" for a PNG before Pillow 11
        values = np.asarray(picture).astype(np.uint16)
        rgba = np.repeat(np.round(values / np.float32(257)).astype(np.uint8)[..., None], 4, -1)
        rgba[..., 3] = 255 if transparent is None else np.where(values == transparent, 0, 255)
        return rgba, transparent is not None
    if is_deep and transparent is not None:
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    has_alpha = _has_alpha(picture)
    if picture.mode == "La":  # premultiplied; it converts to nothing else
        picture = picture.convert("LA")
    return np.array(picture.convert("RGBA")), has_alpha


def _has_alpha(picture: Image.Image) -> bool:
    palette = picture.palette.mode if picture.mode == "P" and picture.palette else ""
    return picture.info.get("transparency") is not None or (palette or picture.mode)[-1] in "Aa"


def shrink(rgba: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor`` x ``factor`` pixels, straight alpha in and out; what is left over is cut off.

    Colors are averaged as they cover, hence weighted by alpha: what is invisible must not bleed into the edges.

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


def _in_threads(function: Callable[[_T], _U], items: Iterable[_T]) -> list[_U]:
    """Decoders release the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))
