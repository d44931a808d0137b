"""What sources of captures share whose poses are in one file for all pictures: folders, splits, reading."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.checks import BadArgument, MissingFile, check_instance, check_integer
from lightning_nerf.data.frames import Frame
from lightning_nerf.data.intrinsics import Stated, full_sphere, pinhole, stated_size
from lightning_nerf.data.json_file import shown
from lightning_nerf.data.list_files import ListedSplits, read_list_files
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.sources.normalized import CapturedCameras, NormalizedSource
from lightning_nerf.data.views import camera_tensors, no_views, read_views, thinned, upright_poses

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class PictureFolder(NamedTuple):
    """The folder that pictures are read from, and by how much they are shrunk after."""

    path: Path
    downscale: int
    message: str | None = None


class Posed(NamedTuple):
    """The content of a capture, in the units of its files."""

    frames: list[Frame]  # in the order of their names
    points: Tensor | None  # [P, 3], on surfaces


class PosedSource(NormalizedSource):
    """A capture whose pictures lie in ``images`` or ``images_N``, with their poses in one place.

    A subclass implements :meth:`load`.

    Args:
        root: the capture's folder.
        test_every: frames 0, k, 2k, ... by name are tested and not trained on, where no list file says otherwise.
        holdout_every: validate on training views 0, k, 2k, ..., and do not train on them.
        downscale: shrink pictures by this integer factor; from ``images_N`` where there is such a folder.
        images_folder: the folder of the pictures, from ``root``; None: ``images_N`` for the ``downscale``, else ``images``.
        n_train, n_val, n_test: at most this many views, evenly spaced. None: all.
        normalize: read the scene in units of its own; False: in those of the files.
        ndc: turn the scene for contraction "ndc": cameras that look one way, see
            :mod:`lightning_nerf.data.forward_facing`.
    """

    def __init__(
        self,
        root: str | Path,
        test_every: int = 8,
        holdout_every: int | None = None,
        downscale: int = 1,
        images_folder: str | None = None,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        normalize: bool = True,
        ndc: bool = False,
    ) -> None:
        check_instance("root", root, str, os.PathLike)
        check_instance("images_folder", images_folder, str, type(None))
        check_instance("normalize", normalize, bool)
        check_instance("ndc", ndc, bool)
        if ndc and not normalize:
            raise BadArgument("normalize: expected True with contraction 'ndc', for which the scene is turned")
        for name, value, least in (
            ("test_every", test_every, 2),
            ("holdout_every", holdout_every, 2),
            ("downscale", downscale, 1),
            ("n_train", n_train, 1),
            ("n_val", n_val, 1),
            ("n_test", n_test, 1),
        ):
            if value is not None:
                check_integer(name, value, least)
        self.root = Path(os.path.expanduser(root))
        self.test_every = test_every
        self.holdout_every = holdout_every
        self.downscale = downscale
        self.images_folder = images_folder
        self.limit = {"train": n_train, "val": n_val, "test": n_test}
        self.normalize = normalize
        self.ndc = ndc
        self._posed: Posed | None = None
        self._listed: ListedSplits | None = None

    @abstractmethod
    def load(self, folder: Path) -> Posed:
        """The frames whose pictures are in a folder."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    def captured(self) -> CapturedCameras:
        """All cameras that have a picture, and the points."""
        posed = self._content()
        tensors = camera_tensors(posed.frames, _intrinsics, _size)
        begins = [frame.bounds[0] for frame in posed.frames if frame.bounds is not None]
        nearest = torch.tensor(begins, dtype=torch.float64) if len(begins) == len(posed.frames) else None
        return CapturedCameras(*tensors, posed.points, upright_poses(posed.frames), nearest)

    def read_world(self, split: str) -> Scene:
        """The views of a split in the units of the files; names are file stems, or paths if two are alike."""
        posed = self._content()
        held_out = self.holdout_every is not None and split != "test"
        frames = self._split("train" if held_out else split, posed.frames)
        if held_out:
            frames = [f for i, f in enumerate(frames) if (i % (self.holdout_every or 1) == 0) == (split == "val")]
        frames = thinned(frames, limit=self.limit[split])
        if not frames and split == "val":
            rank_zero_info(f"{self.root}: no validation views (holdout_every=10 makes some of the training views).")
            return no_views()
        if not frames:
            raise BadArgument(f"{self.root}: no {split} views are left of {len(posed.frames)} pictures")
        return read_views(frames, _intrinsics, self._folder().downscale, self.root)

    def _split(self, split: str, frames: Sequence[Frame]) -> list[Frame]:
        assert self._listed is not None
        if self._listed.names:
            return [frame for frame in frames if self._listed.holds(split, frame.paths)]
        if split == "val":
            return []
        return [frame for i, frame in enumerate(frames) if (i % self.test_every == 0) == (split == "test")]

    def _content(self) -> Posed:
        if self._posed is None:
            folder = self._folder()
            if folder.message is not None:
                rank_zero_info(folder.message)
            posed = self.load(folder.path)
            if not posed.frames:
                raise MissingFile(f"{self.root}: none of its posed pictures is in {shown(folder.path)}")
            self._listed = read_list_files(self.root, [frame.paths for frame in posed.frames])
            rank_zero_info(
                self._listed.message
                or f"{shown(self.root)}: every {self.test_every}th of its {len(posed.frames)} pictures by name is tested "
                "and not trained on (test_every)"
            )
            self._posed = posed
        return self._posed

    def _folder(self) -> PictureFolder:
        if str(self.root) == "???":  # as recipes have it
            raise BadArgument("root: required, give --data.root=path/to/capture")
        if not os.path.isdir(self.root):
            raise MissingFile(f"root: no folder {self.root}")
        return choose_folder(self.root, self.downscale, self.images_folder)


def choose_folder(root: Path, downscale: int, images_folder: str | None) -> PictureFolder:
    """The folder for a ``downscale``: ``images_N`` with the largest N that divides it, ``images`` counting as 1."""
    if images_folder is not None:
        path = root / images_folder
        if not path.is_dir():
            raise MissingFile(f"images_folder: no folder {shown(path)}; there are {_shown_folders(root)}")
        return PictureFolder(path, downscale)
    folders = _folders(root)
    if not folders:
        raise MissingFile(f"{shown(root)}: no folder images or images_N; give images_folder")
    if fitting := [n for n in folders if downscale % n == 0]:
        n = max(fitting)
        return PictureFolder(folders[n], downscale // n)
    n = min(folders)
    message = f"{shown(root)}: no folder images; took the pictures of {folders[n].name} as they are (images_folder)"
    return PictureFolder(folders[n], 1, message)


def list_pictures(folder: Path) -> list[str]:
    """The paths of all pictures in a folder and those below it, from there, in order."""
    return sorted(
        os.path.relpath(os.path.join(place, file), folder)
        for place, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(PICTURES)
    )


def _folders(root: Path) -> dict[int, Path]:
    """``images`` and ``images_N``, by their factor, of those that hold a picture."""
    found: dict[int, Path] = {}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        match = re.fullmatch(r"images(?:_([1-9]\d{0,3}))?", entry.name)
        if match and entry.is_dir() and list_pictures(Path(entry.path)):
            found.setdefault(int(match[1] or 1), Path(entry.path))
    return found


def _shown_folders(root: Path) -> str:
    return ", ".join(sorted(shown(entry.name) for entry in os.scandir(root) if entry.is_dir())) or "none"


def _intrinsics(frame: Frame, width: int, height: int) -> list[float]:
    if frame.lens.model == "equirectangular":
        return full_sphere(width, height)
    return pinhole(_stated(frame), None, width, height)


def _size(frame: Frame) -> tuple[int, int] | None:
    return stated_size(_stated(frame), None)


def _stated(frame: Frame) -> Stated:
    assert frame.stated is not None
    return frame.stated
