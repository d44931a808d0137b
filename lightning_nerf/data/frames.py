"""Parsing ``transforms_*.json``; every error names the file and the frame."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf.checks import BadArgument, MissingFile

_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_LARGEST = torch.finfo(torch.float32).max  # what poses are kept in
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


class Frame(NamedTuple):
    """One entry of ``frames``: a picture that exists, and its camera."""

    image: Path
    mask: Path | None
    c2w: list[list[float]]  # 3 x 4
    time: float | None


class Transforms:
    """What a ``transforms_*.json`` says. Frames whose picture or mask is missing are left out, with one warning.

    ``cameras_only``: no picture or mask is looked for, and a frame need not name one.
    """

    def __init__(self, path: Path, cameras_only: bool = False) -> None:
        self.path = path
        self.cameras_only = cameras_only
        self.content = _read_json(path)
        entries = self.content.get("frames")
        if not isinstance(entries, list) or not entries:
            raise BadArgument(f"{path}: expected a list of frames that is not empty under 'frames', got {_short(entries)}")
        frames = [self._frame(i, entry) for i, entry in enumerate(entries)]
        self.frames = [frame for frame in frames if isinstance(frame, Frame)]
        missing = [frame for frame in frames if isinstance(frame, Path)]
        if not self.frames:
            raise MissingFile(f"{path}: none of the files of its {len(frames)} frames exists, e.g. {missing[0]}")
        if missing:
            rank_zero_warn(f"{path}: skipped {len(missing)} of {len(frames)} frames without a file, e.g. {missing[0]}")
        if len({frame.time is None for frame in self.frames}) > 1:
            raise BadArgument(f"{path}: expected 'time' in all frames or in none")
        if any(self.content.get(name) for name in _DISTORTION):
            rank_zero_warn(f"{path}: lens distortion ({', '.join(_DISTORTION)}) is not applied; cameras are pinholes")

    def intrinsics(self, width: int, height: int) -> list[float]:
        """fx, fy, cx, cy of pictures of width x height pixels."""
        if "camera_angle_x" in self.content:
            angle = self._number("camera_angle_x")
            if not 0 < angle < math.pi:
                raise BadArgument(f"{self.path}: expected 0 < camera_angle_x < pi (radians), got {angle}")
            fx = fy = 0.5 * width / math.tan(0.5 * angle)
            scale = width / self._number("w", width)
        elif "fl_x" in self.content:
            scale = width / self._number("w", width)
            fx = self._number("fl_x") * scale
            fy = self._number("fl_y", self._number("fl_x")) * scale
        else:
            raise BadArgument(f"{self.path}: expected camera_angle_x (radians) or fl_x (pixels)")
        return [fx, fy, self._number("cx", 0.5 * width / scale) * scale, self._number("cy", 0.5 * height / scale) * scale]

    def size(self) -> tuple[int, int] | None:
        """Width and height where the file states both."""
        if self.content.get("w") is None or self.content.get("h") is None:
            return None
        width, height = round(self._number("w")), round(self._number("h"))
        if width < 1 or height < 1:
            raise BadArgument(f"{self.path}: expected w, h of at least one pixel, got {width}, {height}")
        return width, height

    def _number(self, name: str, default: float | None = None) -> float:
        value = self.content.get(name, default)
        if not _is_number(value) or value <= 0:
            raise BadArgument(f"{self.path}: expected a positive number for {name}, got {_short(value)}")
        return float(value)

    def _frame(self, i: int, entry: Any) -> Frame | Path:
        """A frame, or the path that it needs and that does not exist."""
        where = f"{self.path}: frame {i}"
        name = entry.get("file_path") if isinstance(entry, dict) else None
        if self.cameras_only and isinstance(entry, dict):
            name = f"{i:04d}"
        if not isinstance(name, str) or not name:
            raise BadArgument(f"{where}: expected a 'file_path', got {_short(entry)}")
        where = f"{where} ({name})"
        matrix = entry.get("transform_matrix")
        rows = matrix if isinstance(matrix, list) else []
        if len(rows) not in (3, 4) or any(not isinstance(row, list) or len(row) != 4 for row in rows):
            raise BadArgument(f"{where}: expected 'transform_matrix' to be 4x4 or 3x4, got {_short(matrix)}")
        if not all(_is_number(x) for row in rows for x in row):
            raise BadArgument(f"{where}: transform_matrix holds values that are not finite numbers: {_short(matrix)}")
        if abs(torch.linalg.det(torch.tensor([row[:3] for row in rows[:3]], dtype=torch.float64))) < 1e-8:
            raise BadArgument(f"{where}: the rotation in transform_matrix is singular: {_short(matrix)}")
        time = entry.get("time")
        if time is not None and not _is_number(time):
            raise BadArgument(f"{where}: expected a finite number for 'time', got {_short(time)}")
        if self.cameras_only:
            return Frame(Path(name), None, rows[:3], time)  # type: ignore[arg-type]
        image, mask = _find(self.path.parent, name), None
        if entry.get("mask_path"):
            mask = _find(self.path.parent, str(entry["mask_path"]))
        for file, wanted in ((image, name), (mask, entry.get("mask_path"))):
            if wanted and file is None:
                return self.path.parent / wanted
        return Frame(image, mask, rows[:3], time)  # type: ignore[arg-type]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.json"))
        raise MissingFile(f"no file {path}; its folder has {', '.join(found) if found else 'no .json files'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadArgument(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadArgument(f"{path}: expected a JSON object, got {_short(content)}")
    return content


def _find(folder: Path, name: str) -> Path | None:
    candidates = [folder / (name + suffix) for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
