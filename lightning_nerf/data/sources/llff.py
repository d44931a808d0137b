"""LLFF's ``poses_bounds.npy``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.data.find_files import find_mask
from lightning_nerf.data.frames import Frame
from lightning_nerf.data.intrinsics import Stated
from lightning_nerf.data.json_file import shown
from lightning_nerf.data.sources.posed import Posed, PosedSource, list_pictures

FILE = "poses_bounds.npy"
COLUMNS = 17
_MAX_BYTES = 64 * 2**20
_MARGIN = 0.75  # of the distances that LLFF states, which leave out the nearest and the farthest points


class LLFFSource(PosedSource):
    """A capture in the format of LLFF (Mildenhall et al., "Local Light Field Fusion", SIGGRAPH 2019).

    ``poses_bounds.npy`` has a row of 17 numbers for each picture of ``images`` or ``images_N`` in the order of their names:
    a 3x5 matrix (camera to world with the axes down, right and backwards, and height, width and focal length), and the
    distances of the nearest and the farthest point. Rays of a view begin at 0.75 of the first and end, in the picture's
    corners, at 1 / 0.75 of the second.

    The arguments are those of :class:`~lightning_nerf.data.sources.posed.PosedSource`.
    """

    def load(self, folder: Path) -> Posed:
        """The pictures of a folder, by name."""
        path = self.root / FILE
        rows = read_poses_bounds(path)
        pictures = list_pictures(folder)
        if len(pictures) != len(rows):
            raise BadArgument(
                f"{shown(path)}: expected a row for each of the {len(pictures)} pictures of {shown(folder)}, "
                f"got {len(rows)}"
            )
        poses = rows[:, :15].reshape(-1, 3, 5)
        c2w = np.concatenate([poses[:, :, 1:2], -poses[:, :, :1], poses[:, :, 2:4]], 2)
        frames, points = [], []
        for i, name in enumerate(pictures):
            (height, width, focal), (near, far) = poses[i, :, 4], rows[i, 15:]
            where = f"{shown(path)}: frame {i} ({shown(name)})"
            if not (min(height, width) >= 1 and focal > 0 and 0 < near < far):
                raise BadArgument(
                    f"{where}: expected height, width, focal length > 0 and 0 < near < far, got {height:g}, {width:g}, "
                    f"{focal:g}, {near:g}, {far:g}"
                )
            corner = float(np.hypot(1.0, 0.5 * np.hypot(height, width) / focal))  # a ray's length per distance ahead
            stated = Stated(where, float(focal), None, None, None, float(width), float(height))
            names = (name, os.path.basename(name), os.path.splitext(os.path.basename(name))[0])
            image = folder / name
            bounds = (float(_MARGIN * near), float(far / _MARGIN * corner))
            frames.append(
                Frame(image, find_mask(self.root, image), c2w[i].tolist(), None, where, stated, names, bounds=bounds)
            )
            points.append(c2w[i, :, 3] - c2w[i, :, 2] * 2 / (1 / near + 1 / far))  # half-way, as the picture moves
        return Posed(frames, torch.from_numpy(np.array(points)))


def read_poses_bounds(path: Path) -> np.ndarray:
    """The rows of a ``poses_bounds.npy``, [N, 17] float64.

    Raises:
        MissingFile: no such file.
        BadArgument: unreadable, or another number of columns.
    """
    rows = _load(path)
    if rows.ndim != 2 or rows.shape[1] != COLUMNS or len(rows) == 0:
        raise BadArgument(
            f"{shown(path)}: expected {COLUMNS} columns and one row or more, got the shape {list(rows.shape)}; files of 14 "
            "columns have no image size and no focal length"
        )
    if not np.isfinite(rows).all():
        raise BadArgument(f"{shown(path)}: expected finite numbers, got {rows[~np.isfinite(rows)][0]}")
    return rows.astype(np.float64)


def has_columns(path: Path) -> bool:
    """Whether a file has the columns of LLFF's format."""
    try:
        return _load(path).shape[1:] == (COLUMNS,)
    except (BadArgument, MissingFile):
        return False


def _load(path: Path) -> np.ndarray:
    if not os.path.isfile(path):
        raise MissingFile(f"no file {shown(path)}")
    if path.stat().st_size > _MAX_BYTES:
        raise BadArgument(f"{shown(path)}: expected at most {_MAX_BYTES} bytes, got {path.stat().st_size}")
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception as error:  # of many kinds
        raise BadArgument(f"{shown(path)}: cannot be read as an array ({error})") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
        raise BadArgument(f"{shown(path)}: expected an array of numbers")
    return rows
