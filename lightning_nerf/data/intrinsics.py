"""Intrinsics as camera files state them, and which statement counts.

A file and each of its frames may state focal lengths and a principal point in pixels (``fl_x``, ``fl_y``, ``cx``, ``cy``,
of pictures of ``w`` x ``h``; or a 3x3 matrix ``K``) and fields of view in radians (``camera_angle_x``,
``camera_angle_y``). Of these count:

1. What the frame states, before what the file states. For focal lengths that is all or nothing: a frame that states one of
   them, as pixels or as an angle, takes none from the file. ``cx``, ``cy``, ``w`` and ``h`` are taken one by one.
2. Pixels before angles. It is an error if a file, or a frame, states both for one axis and they differ by more than 1 %.
3. The focal length of one axis for both axes, if only one is stated. The picture's center, if ``cx`` or ``cy`` is not.

Pixels are those of a picture of ``w`` x ``h``; they are scaled to the size of the picture that there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import is_number, shorten

_AGREE = 0.01  # of a focal length; tools write an angle with six digits at least
_STEEPEST = 1e4  # the tangent of an angle off the axis: 89.99 degrees
_LONGEST = 1e6  # of a focal length, in sides of the picture
_LARGEST_SIDE = 100_000  # pixels
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_OTHER_LENSES = ("is_fisheye", "equirectangular", "latlong", "orthographic", "ftheta_p0")  # flags of instant-ngp's files
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "distortion_params")


class Stated(NamedTuple):
    """What a file, or one of its frames, states; None: nothing."""

    where: str  # for errors
    fl_x: float | None = None
    fl_y: float | None = None
    cx: float | None = None
    cy: float | None = None
    w: float | None = None
    h: float | None = None
    camera_angle_x: float | None = None
    camera_angle_y: float | None = None

    @property
    def has_focal(self) -> bool:
        """Does it state a focal length or an angle, for either axis?"""
        return (self.fl_x, self.fl_y, self.camera_angle_x, self.camera_angle_y) != (None, None, None, None)


INTRINSIC_KEYS = frozenset((*Stated._fields[1:], "K"))
_OF_MATRIX = {"fl_x": (0, 0), "fl_y": (1, 1), "cx": (0, 2), "cy": (1, 2)}


def read_stated(where: str, entry: Mapping[str, Any]) -> Stated:
    """The intrinsics of one JSON object, checked."""
    values: dict[str, float] = {}
    if entry.get("K") is not None:
        entry = _with_matrix(where, entry)
    for name in Stated._fields[1:]:
        value = entry.get(name)
        if value is None:
            continue
        is_offset = name in ("cx", "cy")  # that of a crop may be anywhere
        if not is_number(value) or not (is_offset or value > 0):
            raise BadArgument(
                f"{where}: expected a {'' if is_offset else 'positive '}number for {name}, got {shorten(value)}"
            )
        if name.startswith("camera_angle") and value >= math.pi:
            raise BadArgument(f"{where}: expected 0 < {name} < pi (radians), got {value}")
        if name in ("w", "h") and not 1 <= round(value) <= _LARGEST_SIDE:
            raise BadArgument(f"{where}: expected {name} from 1 to {_LARGEST_SIDE} pixels, got {shorten(value)}")
        values[name] = float(value)
    return Stated(where, **values)


def _with_matrix(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with what its matrix ``K`` says in pixels."""
    matrix = entry["K"]
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) != 3 or any(not isinstance(row, list) or len(row) < 3 or not all(map(is_number, row)) for row in rows):
        raise BadArgument(f"{where}: expected K to be 3x3, got {shorten(matrix)}")
    if abs(rows[0][1]) > _AGREE * abs(rows[0][0]) or rows[1][0] or any(rows[2][:2]) or abs(rows[2][2] - 1) > _AGREE:
        raise BadArgument(f"{where}: expected K to be [fx, 0, cx], [0, fy, cy], [0, 0, 1], got {shorten(matrix)}")
    own = dict(entry)
    for name, (i, j) in _OF_MATRIX.items():
        stated = own.get(name)
        if is_number(stated) and abs(stated - rows[i][j]) > _AGREE * abs(rows[0][0]):
            raise BadArgument(f"{where}: {name}={stated:g} and K contradict each other: {rows[i][j]:g}")
        own[name] = rows[i][j]
    return own


def full_sphere(width: int, height: int) -> list[float]:
    """fx, fy, cx, cy of an equirectangular picture of all directions, in pixels per radian."""
    return [width / (2 * math.pi), height / math.pi, 0.5 * width, 0.5 * height]


def stated_size(file: Stated, frame: Stated | None) -> tuple[int, int] | None:
    """Width and height of a frame's picture, where both are stated."""
    own = frame or file
    width, height = own.w or file.w, own.h or file.h
    return (round(width), round(height)) if width and height else None


def pinhole(file: Stated, frame: Stated | None, width: int, height: int) -> list[float]:
    """fx, fy, cx, cy of a picture of ``width`` x ``height`` pixels; see the module for what counts.

    Raises:
        ValueError: no focal length, statements that contradict each other, a picture of another shape than ``w`` x ``h``,
            or a field of view that is next to nothing or to 180 degrees.
    """
    own = frame or file
    focal = own if own.has_focal else file
    if not focal.has_focal:
        raise BadArgument(f"{file.where}: expected camera_angle_x (radians) or fl_x (pixels)")
    fx, fy = _focal_lengths(focal, _scale(focal, own, file, width, height), width, height)
    x_scope, y_scope = (own if own.cx is not None else file), (own if own.cy is not None else file)
    cx, cy = 0.5 * width, 0.5 * height
    if x_scope.cx is not None:
        cx = x_scope.cx * _scale(x_scope, own, file, width, height)[0]
    if y_scope.cy is not None:
        cy = y_scope.cy * _scale(y_scope, own, file, width, height)[1]
    is_wide = max(abs(cx), abs(width - cx)) > _STEEPEST * fx or max(abs(cy), abs(height - cy)) > _STEEPEST * fy
    if is_wide or fx > _LONGEST * width or fy > _LONGEST * height:
        raise BadArgument(
            f"{focal.where}: expected a field of view above 1e-6 radians and below 180 degrees, "
            f"got fx={fx:.6g}, fy={fy:.6g}, cx={cx:.6g}, "
            f"cy={cy:.6g} for pictures of {width}x{height} pixels"
        )
    return [fx, fy, cx, cy]


def check_lens(where: str, entry: Mapping[str, object]) -> None:
    """Refuse cameras that are no pinholes, by the name that the file gives them."""
    model = entry.get("camera_model")
    name = next((f"{flag}={shorten(entry[flag])}" for flag in _OTHER_LENSES if entry.get(flag)), None)
    if model and not (isinstance(model, str) and model.upper() in _PINHOLES):
        name = f"camera_model={shorten(model)}"
    if name:
        raise BadArgument(
            f"{where}: {name} is not supported, cameras are pinholes; undistort the pictures (say with COLMAP's "
            "image_undistorter) and give their new camera file"
        )


def has_distortion(entry: Mapping[str, object]) -> bool:
    """Does it state lens distortion that is not zero?"""
    for name in _DISTORTION:
        value = entry.get(name)
        if any(value) if isinstance(value, list) else value:
            return True
    return False


def _focal_lengths(scope: Stated, scale: tuple[float, float], width: int, height: int) -> tuple[float, float]:
    """fx and fy in pixels of the picture that there is."""
    fx = _focal(scope, "x", scope.fl_x, scope.camera_angle_x, scale[0], width)
    fy = _focal(scope, "y", scope.fl_y, scope.camera_angle_y, scale[1], height)
    # Square pixels where only one axis is stated; rounded sides may have scaled the axes a little differently.
    if fx is None:
        fx = (fy or 0.0) * scale[0] / scale[1]
    if fy is None:
        fy = fx * scale[1] / scale[0]
    return fx, fy


def _focal(scope: Stated, axis: str, pixels: float | None, angle: float | None, scale: float, side: int) -> float | None:
    of_angle = None if angle is None else 0.5 * side / math.tan(0.5 * angle)
    if pixels is None:
        return of_angle
    focal = pixels * scale
    if of_angle is not None and abs(focal - of_angle) > _AGREE * of_angle:
        raise BadArgument(
            f"{scope.where}: fl_{axis}={pixels:g} and camera_angle_{axis}={angle:g} contradict each other: focal lengths "
            f"of {focal:.6g} and {of_angle:.6g} pixels in a picture of {side}; remove the wrong one, or state the w and h "
            "that fl_x and fl_y belong to"
        )
    return focal


def _scale(scope: Stated, own: Stated, file: Stated, width: int, height: int) -> tuple[float, float]:
    """From pixels of ``scope`` to pixels of the picture, along x and y."""
    w, h = scope.w or own.w or file.w, scope.h or own.h or file.h
    if not w or not h:
        scale = width / w if w else height / h if h else 1.0
        return scale, scale
    if not _same_shape(w, h, width, height):
        where = next(s.where for s in (scope, own, file) if s.w or s.h)
        stated = f"{where}: w={w:g}, h={h:g}, but the picture has {width}x{height} pixels"
        if _same_shape(h, w, width, height):
            raise BadArgument(
                f"{stated}: w and h are swapped, or the picture lies on its side (an EXIF orientation is not applied); "
                "swap w and h, or turn the picture"
            )
        raise BadArgument(f"{stated}, which is no scale of it; state fl_x, fl_y, cx, cy, w, h of the picture")
    return width / w, height / h


def _same_shape(w: float, h: float, width: int, height: int) -> bool:
    """Is one the other's shape at another scale, sides rounded up or down to whole pixels?"""
    return abs(width / w - height / h) <= 1.001 * max(1.0, width / w, height / h) * (1 / w + 1 / h)
