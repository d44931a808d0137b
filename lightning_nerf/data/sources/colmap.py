"""COLMAP's sparse reconstructions, read through pycolmap."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.data.find_files import find_mask
from lightning_nerf.data.frames import Frame
from lightning_nerf.data.intrinsics import Stated
from lightning_nerf.data.json_file import shown
from lightning_nerf.data.lenses import Lens, make_lens
from lightning_nerf.data.sources.posed import Posed, PosedSource, list_pictures

LEAST_VERSION = (4, 2)
_INSTALL = "pip install 'lightning-nerf[captures]'"
_MOST_POINTS = 100_000  # they decide medians only, and each costs microseconds
_FILES = ("cameras", "images", "points3D")


class _Camera(Protocol):
    width: int
    height: int
    model_name: str
    params_info: str
    params: Sequence[float]


class _Pose(Protocol):
    def matrix(self) -> np.ndarray: ...


class _Image(Protocol):
    name: str
    camera_id: int
    has_pose: bool

    def cam_from_world(self) -> _Pose: ...


class _Point(Protocol):
    xyz: np.ndarray


class Reconstruction(Protocol):
    """What is read of ``pycolmap.Reconstruction``."""

    cameras: Mapping[int, _Camera]
    images: Mapping[int, _Image]
    points3D: Mapping[int, _Point]  # noqa: N815


class ColmapSource(PosedSource):
    """A capture that COLMAP has posed: ``sparse/0`` or ``sparse``, ``.bin`` or ``.txt``, and ``images``.

    So are the scenes of mip-NeRF 360 and of 3D Gaussian Splatting. Reading needs pycolmap, ``pip install
    'lightning-nerf[captures]'``. Cameras may be any of SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV,
    OPENCV_FISHEYE, SIMPLE_RADIAL_FISHEYE and RADIAL_FISHEYE, one for all pictures or one each; other models are refused by
    name. Pictures of ``images_N`` scale the intrinsics by the size that they have.

    Pictures without a pose are not read. A ``masks`` folder has masks of the pictures' names, or of these with ``.png``.
    Splits are those of list files (``train_image.txt``, ``val_image.txt``, ``test.txt``, ...), else every ``test_every``-th
    picture by name is tested. The arguments are those of :class:`~lightning_nerf.data.sources.posed.PosedSource`.
    """

    def load(self, folder: Path) -> Posed:
        """The posed pictures of a folder, by name."""
        sparse = find_sparse(self.root)
        if sparse is None:
            raise MissingFile(f"{shown(self.root)}: no COLMAP model in sparse/0 or sparse (cameras, images and points3D)")
        content = read_reconstruction(sparse)
        posed = sorted((image for image in content.images.values() if image.has_pose), key=lambda image: image.name)
        files = match_names([image.name for image in posed], folder)
        missing = [image.name for image, file in zip(posed, files, strict=True) if file is None]
        if missing and len(missing) < len(posed):
            rank_zero_warn(
                f"{shown(folder)}: skipped {len(missing)} of {len(posed)} posed pictures without a file, e.g. "
                f"{shown(missing[0])}"
            )
        unposed = len(list_pictures(folder)) - len(posed) + len(missing)
        if unposed > 0:
            rank_zero_info(f"{shown(folder)}: {unposed} pictures have no pose in {shown(sparse)}; they are not read")
        lenses = {key: _lens(f"{shown(sparse)}: camera {key}", camera) for key, camera in content.cameras.items()}
        frames = [
            _frame(self.root, file, image, *lenses[image.camera_id])
            for image, file in zip(posed, files, strict=True)
            if file is not None
        ]
        step = 1 + len(content.points3D) // _MOST_POINTS
        chosen = itertools.islice(content.points3D.values(), None, None, step)
        points = np.array([point.xyz for point in chosen], np.float64).reshape(-1, 3)
        return Posed(frames, torch.from_numpy(points) if len(points) else None)


def find_sparse(root: Path) -> Path | None:
    """The folder of a model: ``sparse/0``, ``sparse``, or the first other that is numbered; None: there is none."""
    numbered = root / "sparse"
    others = sorted((path for path in numbered.glob("[0-9]*")), key=lambda path: (len(path.name), path.name))
    for path in (numbered / "0", numbered, *others):
        if any(all(os.path.isfile(path / f"{name}.{end}") for name in _FILES) for end in ("bin", "txt")):
            return path
    return None


def read_reconstruction(folder: Path) -> Reconstruction:
    """A model as pycolmap reads it.

    Raises:
        BadArgument: pycolmap is missing or old, or cannot read the files.
    """
    pycolmap = import_pycolmap()
    try:
        return cast(Reconstruction, pycolmap.Reconstruction(str(folder)))
    except Exception as error:  # of many kinds, from pycolmap's C++
        raise BadArgument(f"{shown(folder)}: pycolmap cannot read the model ({error})") from error


def import_pycolmap() -> Any:
    """The module pycolmap, 4.2 or newer.

    Raises:
        BadArgument: with advice, where there is none, an older one, or another package of that name.
    """
    needed = ".".join(map(str, LEAST_VERSION))
    try:
        pycolmap = importlib.import_module("pycolmap")
    except ImportError as error:
        raise BadArgument(f"reading COLMAP's files needs pycolmap >= {needed} ({error}): {_INSTALL}") from error
    version = str(getattr(pycolmap, "__version__", "unknown"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if not hasattr(pycolmap, "Reconstruction") or numbers < LEAST_VERSION:
        raise BadArgument(
            f"reading COLMAP's files needs pycolmap >= {needed}, got version {version} of "
            f"{getattr(pycolmap, '__file__', '?')}: pip uninstall pycolmap, then {_INSTALL}"
        )
    return pycolmap


def match_names(names: Sequence[str], folder: Path) -> list[Path | None]:
    """The files of posed pictures, None where there is none.

    By the name, else the name with another suffix, else, if no name fits and there are as many pictures as names, in order:
    tools that shrink pictures number them anew.
    """
    pictures = list_pictures(folder)
    known = set(pictures)
    by_stem: dict[str, str] = {}
    for picture in pictures:
        by_stem.setdefault(os.path.splitext(picture)[0], picture)
    found: list[str | None] = []
    for name in names:
        path = os.path.normpath(name.replace("\\", "/"))
        found.append(path if path in known else by_stem.get(os.path.splitext(path)[0]))
    if names and not any(found) and len(pictures) == len(names):
        rank_zero_info(
            f"{shown(folder)}: its pictures have other names than the model's; matched them in order, "
            f"{shown(pictures[0])} for {shown(names[0])}"
        )
        found = list(pictures)
    return [None if name is None else folder / name for name in found]


def _lens(where: str, camera: _Camera) -> tuple[Stated, Lens]:
    names = [name.strip() for name in camera.params_info.split(",")]
    values = dict(zip(names, map(float, camera.params), strict=True))
    fx, fy = values.pop("fx", values.get("f")), values.pop("fy", values.pop("f", None))
    cx, cy = values.pop("cx", None), values.pop("cy", None)
    if "k" in values:
        values["k1"] = values.pop("k")
    lens = make_lens(where, camera.model_name, values)
    return Stated(where, fx, fy, cx, cy, float(camera.width), float(camera.height)), lens


def _frame(root: Path, file: Path, image: _Image, stated: Stated, lens: Lens) -> Frame:
    world_to_camera = np.asarray(image.cam_from_world().matrix(), np.float64)
    rotation, translation = world_to_camera[:, :3], world_to_camera[:, 3]
    axes = rotation.T * np.array([1.0, -1.0, -1.0])  # COLMAP's cameras have y down and look along +z
    c2w = np.concatenate([axes, (-rotation.T @ translation)[:, None]], 1)
    names = (image.name, os.path.basename(image.name), os.path.splitext(os.path.basename(image.name))[0])
    where = f"{shown(root)}: frame {shown(image.name)}"
    return Frame(file, find_mask(root, file), c2w.tolist(), None, where, stated, names, lens)
