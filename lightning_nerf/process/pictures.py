"""A folder of photos as the pictures that features are looked for in."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.sfm import Count

AS_THEY_ARE = (".jpg", ".jpeg", ".png")
_CONVERTED = (".bmp", ".tif", ".tiff", ".webp")  # written as PNG
_UNREAD = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_UPRIGHT = (None, 1)
_FORMATS = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",)}  # COLMAP goes by the name


def list_photos(folder: Path) -> list[Path]:
    """The photos in a folder, in the order of their names with numbers by value.

    Raises:
        BadArgument: where there are fewer than 3.
    """
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in (*AS_THEY_ARE, *_CONVERTED)]
    if len(photos) < 3:
        unread = sum(path.suffix.lower() in _UNREAD for path in files)
        why = f" beside {unread} in formats that are not read here; convert those to JPEG" if unread else ""
        inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _has_photos(path)]
        why = why or (f"; it has photos in {', '.join(inside[:3])}" if inside else "")
        raise BadArgument(f"{folder}: expected at least 3 photos (JPEG or PNG), got {len(photos)}{why}")
    return sorted(photos, key=_natural)


def enter_photos(photos: Sequence[Path], folder: Path, count: Count) -> tuple[list[str], list[str]]:
    """Link or copy photos into a folder; returns their names there, and those of photos that cannot be read.

    A photo that lies on its side, as phones store them, is written upright, since no reader of camera files turns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    unreadable: list[str] = []
    for i, photo in enumerate(photos):
        name = _free_name(photo, names)
        try:
            _enter(photo, folder / name)
        except _UnreadableError:
            unreadable.append(photo.name)
        else:
            names.append(name)
        count(i + 1)
    return names, unreadable


def group_by_camera(folder: Path, names: Sequence[str], single_camera: bool | None) -> list[list[str]]:
    """Which pictures share a camera: those of one size that the same camera took at the same focal length (EXIF).

    Args:
        folder: of the pictures.
        names: theirs.
        single_camera: True: all of one size share one; False: none do.
    """
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in names:
        with Image.open(folder / name) as picture:
            key = (name,) if single_camera is False else (picture.size,)
            if single_camera is None:
                exif = picture.getexif()
                lens = exif.get_ifd(ExifTags.IFD.Exif)
                shot = [lens.get(tag) for tag in (ExifTags.Base.FocalLength, ExifTags.Base.FocalLengthIn35mmFilm)]
                key = (*key, *(str(tag) for tag in (exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model), *shot)))
        groups[key].append(name)
    return list(groups.values())


class _UnreadableError(Exception):
    pass


def _enter(photo: Path, path: Path) -> None:
    if path.exists() and path.samefile(photo):  # the photos are in the folder already
        return
    path.unlink(missing_ok=True)
    try:
        with Image.open(photo) as picture:
            picture.load()
            is_upright = picture.getexif().get(ExifTags.Base.Orientation) in _UPRIGHT
            is_as_named = picture.format in _FORMATS[path.suffix.lower()] and photo.suffix == path.suffix
            if not is_upright or not is_as_named:
                turned = ImageOps.exif_transpose(picture)
                turned.save(path, exif=turned.getexif(), quality=97, subsampling=0)  # a PNG has no use for the last two
                return
    except Exception as error:  # of many kinds, from any decoder
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise _UnreadableError(str(error)) from error
    with suppress(OSError):
        os.link(photo, path)
        return
    shutil.copy2(photo, path)  # the folder is on another disk


def _free_name(photo: Path, taken: Sequence[str]) -> str:
    """The photo's name without blanks, which part words in COLMAP's lists."""
    suffix = photo.suffix if photo.suffix.lower() in AS_THEY_ARE else ".png"
    stem = re.sub(r"\s+", "_", photo.stem)
    name, n = f"{stem}{suffix}", 1
    while name in taken:
        n += 1
        name = f"{stem}_{n}{suffix}"
    return name


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _has_photos(folder: Path) -> bool:
    return any(path.suffix.lower() in AS_THEY_ARE for path in folder.iterdir())
