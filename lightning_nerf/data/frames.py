"""Parsing ``transforms_*.json``; every error names the file and the frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.data.find_files import SUFFIXES, FileFinder, find_file, find_mask
from lightning_nerf.data.frame_times import check_times, near_miss
from lightning_nerf.data.intrinsics import (
    INTRINSIC_KEYS,
    Stated,
    check_lens,
    full_sphere,
    has_distortion,
    pinhole,
    read_stated,
    stated_size,
)
from lightning_nerf.data.json_file import is_number, read_json_object, shorten, shown
from lightning_nerf.data.lenses import Lens, read_lens
from lightning_nerf.data.split_lists import listed_path, read_split_lists

MAX_FRAMES = 100_000
SPLIT_NAMES = {  # as tools write them
    **{name: name for name in ("train", "val", "test")},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "eval": "test",
    "evaluation": "test",
}
_FLATTEST = 1e-8  # the determinant of a matrix with columns of unit length
_SCALES = (1e-12, 1e12)  # of a rotation's entries: between them float32 can square what directions are made of


class Frame(NamedTuple):
    """One entry of ``frames``: a picture that exists, and its camera."""

    image: Path
    mask: Path | None
    c2w: list[list[float]]  # 3 x 4
    time: float | None
    where: str = ""  # for errors: the file, the number and the name of the frame
    stated: Stated | None = None  # intrinsics of its own
    paths: tuple[str, ...] = ()  # names of the picture that a list of a split may give: with its suffix, and as written
    lens: Lens = Lens()
    split: str | None = None  # "train", "val" or "test", where the frame says so
    depth: Path | None = None  # a picture of depths
    depth_unit: float = 0.001  # of whole numbers in it
    bounds: tuple[float, float] | None = None  # near and far


class Transforms:
    """The content of a ``transforms_*.json``. Frames whose picture or mask is missing are left out, with one warning.

    Which of the intrinsics count that a file and its frames state: see :mod:`lightning_nerf.data.intrinsics`.

    Args:
        path: the file; at most 100,000 frames.
        cameras_only: look for no picture or mask; a frame need not name one.
        needs_times: every frame must have a ``time``, also one without a picture.
        reads_times: False: whatever the frames say of times is neither read nor checked.
        lenses: read the lens of each frame, see :func:`~lightning_nerf.data.lenses.read_lens`. Otherwise distortion is
            warned of and left out, and a camera that is no pinhole is refused.
        resolve: look for files whose paths are another machine's, see :class:`~lightning_nerf.data.find_files.FileFinder`,
            for depths, and for masks in a folder ``masks``.

    Raises:
        FileNotFoundError: the file, or all of its pictures.
        ValueError: anything else that is wrong with it.
    """

    def __init__(
        self,
        path: Path,
        cameras_only: bool = False,
        needs_times: bool = False,
        reads_times: bool = True,
        lenses: bool = False,
        resolve: bool = False,
    ) -> None:
        self.path = path
        self.cameras_only = cameras_only
        self.reads_times = reads_times
        self.lenses = lenses
        self._finder = FileFinder(path.parent) if resolve else None
        where = shown(path)
        content = read_json_object(path, "transform_matrix", MAX_FRAMES)
        entries = content.get("frames")
        if not isinstance(entries, list) or not entries:
            raise BadArgument(
                f"{where}: expected a list of frames that is not empty under 'frames', got {shorten(entries)}"
                f"{near_miss('it', content, 'frames')}"
            )
        if not lenses:
            check_lens(where, content)
        self.stated = read_stated(where, content)
        self._content = content
        frames = [self._frame(i, entry) for i, entry in enumerate(entries)]
        if reads_times:
            check_times(where, entries, needs_times)
        self.frames = [frame for frame in frames if isinstance(frame, Frame)]
        missing = [frame for frame in frames if isinstance(frame, str)]
        self.lists = None if cameras_only else read_split_lists(path, content)
        if self.lists is not None:
            absent = [entry["file_path"] for entry, frame in zip(entries, frames, strict=True) if isinstance(frame, str)]
            names = (listed_path(path.parent, name + end) for name in absent for end in SUFFIXES)
            self.lists.check([frame.paths for frame in self.frames], names)
        if not self.frames:
            raise MissingFile(f"{where}: none of the files of its {len(frames)} frames exists, e.g. {missing[0]}")
        if missing:
            rank_zero_warn(f"{where}: skipped {len(missing)} of {len(frames)} frames without a file, e.g. {missing[0]}")
        _check_rotations(self.frames)
        if self._finder is not None:
            self._finder.report(where)
        if not lenses and (has_distortion(content) or any(has_distortion(entry) for entry in entries)):
            rank_zero_warn(
                f"{where}: lens distortion (k1, k2, p1, ...) is not applied; cameras are pinholes (CaptureData applies it)"
            )

    def intrinsics(self, frame: Frame, width: int, height: int) -> list[float]:
        """fx, fy, cx, cy in pixels of the frame's picture, which has ``width`` x ``height`` of them as it was read."""
        if frame.lens.model == "equirectangular":
            return full_sphere(width, height)
        return pinhole(self.stated, frame.stated, width, height)

    def size(self, frame: Frame) -> tuple[int, int] | None:
        """Width and height of the frame's picture where the file states both."""
        return stated_size(self.stated, frame.stated)

    def _frame(self, i: int, entry: Any) -> Frame | str:
        """A frame, or the path that it needs and that does not exist, to be shown."""
        where = f"{shown(self.path)}: frame {i}"
        name = entry.get("file_path") if isinstance(entry, dict) else None
        if self.cameras_only and isinstance(entry, dict):
            name = f"{i:04d}"
        if not isinstance(name, str) or not name:
            raise BadArgument(f"{where}: expected a 'file_path', got {shorten(entry)}")
        where = f"{where} ({shown(name)})"
        c2w = _camera_to_world(where, entry.get("transform_matrix"), near_miss(f"frame {i}", entry, "transform_matrix"))
        time, mask_name = entry.get("time") if self.reads_times else None, entry.get("mask_path")
        if time is not None and not is_number(time):
            raise BadArgument(f"{where}: expected a finite number for 'time', got {shorten(time)}")
        if mask_name is not None and not isinstance(mask_name, str):
            raise BadArgument(f"{where}: expected a path for 'mask_path', got {shorten(mask_name)}")
        lens = Lens()
        if self.lenses:
            lens = read_lens(where, self._content, entry)
        else:
            check_lens(where, entry)
        stated = read_stated(where, entry) if INTRINSIC_KEYS & entry.keys() else None
        split = _split(where, entry.get("split"))
        frame = Frame(Path(name), None, c2w, time, where, stated, lens=lens, split=split)
        return frame if self.cameras_only else self._with_files(frame, entry, name, mask_name)

    def _with_files(self, frame: Frame, entry: Mapping[str, Any], name: str, mask_name: str | None) -> Frame | str:
        """The frame with its picture, mask and depth; or the path of what does not exist, to be shown."""
        folder = self.path.parent
        image, mask, depth = self._found(name, True), None, None
        if image is None:
            return shown(folder / name)
        if mask_name:
            mask = self._found(mask_name)
            if mask is None:
                return shown(folder / mask_name)
        elif self._finder is not None:
            mask = find_mask(folder, image)
        depth_name = entry.get("depth_file_path", entry.get("depth_path"))
        if self._finder is not None and isinstance(depth_name, str) and depth_name:
            depth = self._found(depth_name)
            unit = self._content.get("integer_depth_scale")  # as instant-ngp has it
            if unit is not None and not (is_number(unit) and unit > 0):
                raise BadArgument(
                    f"{shown(self.path)}: expected a number > 0 for 'integer_depth_scale', got {shorten(unit)}"
                )
            frame = frame if unit is None else frame._replace(depth_unit=float(unit))
        paths = (listed_path(folder, name), os.path.normpath(image))
        return frame._replace(image=image, mask=mask, depth=depth, paths=paths)

    def _found(self, name: str, is_picture: bool = False) -> Path | None:
        return find_file(self.path.parent, name) if self._finder is None else self._finder.find(name, is_picture)


def unique_names(files: Sequence[Path], root: Path) -> list[str]:
    """A name for each picture, under which others can be written: no two are equal, also where letters' case is ignored.

    The first of these that tells all files apart: their stems; paths from ``root``, joined by "_"; these with the suffix.
    A file that is given twice is numbered on top.
    """
    paths = [[part for part in Path(os.path.relpath(file, root)).parts[:-1] if part != ".."] for file in files]
    stems = [file.stem for file in files]
    joined = ["_".join([*path, stem]) for path, stem in zip(paths, stems, strict=True)]
    names = [name + file.suffix.replace(".", "_") for name, file in zip(joined, files, strict=True)]
    for shorter in (joined, stems):
        if len({name.casefold() for name in shorter}) == len(set(files)):
            names = shorter
    return _numbered(names)


def _numbered(names: Sequence[str]) -> list[str]:
    """Repeated names with "_2", "_3", ..., leaving out what other names are."""
    given, used, counts = {name.casefold() for name in names}, set[str](), dict[str, int]()
    result = []
    for name in names:
        unique = name
        while unique.casefold() in used or (unique != name and unique.casefold() in given):
            counts[name] = counts.get(name, 1) + 1
            unique = f"{name}_{counts[name]}"
        used.add(unique.casefold())
        result.append(unique)
    return result


def _camera_to_world(where: str, matrix: Any, hint: str) -> list[list[float]]:
    """The upper three rows of a camera's matrix; ``hint``: what else the frame has, where it has no matrix."""
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) not in (3, 4) or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise BadArgument(f"{where}: expected 'transform_matrix' to be 4x4 or 3x4, got {shorten(matrix)}{hint}")
    if not all(is_number(x) for row in rows for x in row):
        raise BadArgument(f"{where}: transform_matrix holds values that are not finite numbers: {shorten(matrix)}")
    is_singular = not any(x for row in rows[:3] for x in row[:3])  # for _check_rotations to tell
    if len(rows) == 4 and not is_singular and max(abs(x - y) for x, y in zip(rows[3], (0, 0, 0, 1), strict=True)) > 1e-4:
        remedy = "expected the last row of transform_matrix to be 0, 0, 0, 1"
        if not any(row[3] for row in rows[:3]):
            remedy = "transform_matrix is transposed: the camera's position is in its last row; swap its rows and columns"
        raise BadArgument(f"{where}: {remedy}, got {shorten(rows[3])}")
    return rows[:3]


def _split(where: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLIT_NAMES:
        raise BadArgument(f"{where}: expected split to be train, val or test, got {shorten(value)}")
    return SPLIT_NAMES[value]


def _check_rotations(frames: Sequence[Frame]) -> None:
    """Of all frames at once: each on its own would take longer than the parsing."""
    rotations = np.array([frame.c2w for frame in frames], np.float64)[:, :, :3]
    scale = np.abs(rotations).max((1, 2))
    rotations /= np.where(scale > 0, scale, 1)[:, None, None]
    lengths = np.linalg.norm(rotations, axis=1).prod(-1)
    flat = np.abs(np.linalg.det(rotations)) <= _FLATTEST * lengths
    bad = np.flatnonzero(flat | (scale < _SCALES[0]) | (scale > _SCALES[1]))
    if len(bad):
        frame = frames[bad[0]]
        raise BadArgument(f"{frame.where}: the rotation in transform_matrix is singular: {shorten(frame.c2w)}")
