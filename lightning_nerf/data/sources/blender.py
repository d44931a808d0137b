"""The NeRF-Synthetic ("Blender") format: ``transforms_{split}.json`` and the pictures that it names."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf.checks import BadArgument, MissingFile, check_instance, check_integer
from lightning_nerf.data.default_box import DEFAULT_BOX, fit_box
from lightning_nerf.data.frames import Frame, Transforms
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.source import Source
from lightning_nerf.data.splits import TEST_EVERY, SplitFiles, choose_split_files
from lightning_nerf.data.views import camera_tensors, no_views, read_views, thinned
from lightning_nerf.scene_box import SceneBox


class BlenderSource(Source):
    """A scene in the NeRF-Synthetic format (Mildenhall et al., "NeRF", ECCV 2020).

    Each split has a ``transforms_{split}.json`` with intrinsics (see :mod:`lightning_nerf.data.intrinsics` for what counts
    before what) and ``frames``, each with ``file_path`` (relative to the folder, with or without suffix; PNG or JPEG,
    RGBA, RGB or grey, of any size), ``transform_matrix`` (camera to world, 4x4 or 3x4), and optionally ``mask_path`` (a
    picture whose zeros are never drawn), ``time`` and intrinsics of its own. Frames whose picture or mask is missing are
    skipped with a warning. A folder with one ``transforms.json`` is split by the lists in it (``train_filenames``, ...) or
    by rule, see :func:`~lightning_nerf.data.splits.choose_split_files`.

    A file has times in all of its frames or in none; a subclass with ``needs_times`` wants them in all.

    Test views are never trained on. Validation uses ``transforms_{val_split}.json`` where it exists, or, with
    ``holdout_every=k``, every k-th training view, which is then not trained on. Where there is neither, a fit has no
    validation: training views are never held out unasked, for that would change the result.

    Args:
        root: the scene's folder.
        train_split, val_split, test_split: which ``transforms_*.json`` each split reads.
        holdout_every: validate on training views 0, k, 2k, … instead (to choose settings without a look at test views).
        downscale: shrink pictures by this integer factor, averaging areas.
        val_every, test_every: use views 0, k, 2k, … of the split ("every 8th").
        n_train, n_val, n_test: at most this many views, evenly spaced over what is left after the above. None: all.
    """

    needs_times: ClassVar[bool] = False
    is_capture: ClassVar[bool] = False  # honor lenses, and find files whose paths are another machine's
    held_out_every: int = TEST_EVERY  # of the frames of one file for all splits

    def __init__(
        self,
        root: str | Path,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        holdout_every: int | None = None,
        downscale: int = 1,
        val_every: int = 1,
        test_every: int = 1,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
    ) -> None:
        check_instance("root", root, str, os.PathLike)
        check_counts(
            downscale=downscale, val_every=val_every, test_every=test_every, n_train=n_train, n_val=n_val, n_test=n_test
        )
        if holdout_every is not None:
            check_integer("holdout_every", holdout_every, 2)
        if train_split == test_split:
            raise BadArgument(f"train_split, test_split: both are {train_split!r}; test views are never trained on")
        self._read: dict[Path, Transforms] = {}
        self._chosen: SplitFiles | None = None
        self.root = Path(os.path.expanduser(root))  # Path.expanduser raises where there is no such user
        self.files = {"train": train_split, "val": val_split, "test": test_split}
        self.holdout_every = holdout_every
        self.downscale = downscale
        self.every = {"train": 1, "val": val_every, "test": test_every}
        self.limit = {"train": n_train, "val": n_val, "test": n_test}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    def box(self) -> SceneBox:
        """The default box [-1.5, 1.5]^3 where it holds what the training cameras look at, else one around that."""
        default = SceneBox(torch.tensor(DEFAULT_BOX, dtype=torch.float32))
        try:
            transforms = self._transforms(self._files().train)
        except FileNotFoundError:  # a mere test needs no training views
            return default
        box, message = fit_box(*camera_tensors(transforms.frames, transforms.intrinsics, transforms.size))
        if message is not None:
            rank_zero_info(message)
        return SceneBox(box)

    def has_test_views(self) -> bool:
        """False where no file and no list names one, which is said before the first step."""
        return self._files().test is not None

    def check(self) -> None:
        """Parse the files of all splits. Pictures of a split that is not read may be missing."""
        for split in self.files:
            with suppress(FileNotFoundError):
                self._frames(split)

    def times(self, split: str) -> list[float | None] | None:
        """The times of a split's views as its file has them; None where it cannot be read or has no pictures."""
        try:
            found = self._frames(split)
        except (FileNotFoundError, BadArgument):  # said when the split is read
            return None
        return [] if found is None else [frame.time for frame in found[1]]

    def read(self, split: str) -> Scene:
        """The views that the arguments leave of a split; names are file stems, or paths if two are alike."""
        files = self._files()
        if split == "train" and files.message is not None:
            rank_zero_info(files.message)
        found = self._frames(split)
        if found is None and split == "val":
            rank_zero_info(
                f"{self.root} has no transforms_val.json: no validation views (holdout_every=10 makes some of train)."
            )
            return no_views()
        if found is None:
            raise MissingFile(files.message or "")
        transforms, frames = found
        return read_views(frames, transforms.intrinsics, self.downscale, self.root)

    def _frames(self, split: str) -> tuple[Transforms, list[Frame]] | None:
        """The split's file and the frames that the arguments leave of it; None where the scene has no such split."""
        files = self._files()
        held_out = self.holdout_every is not None and split != "test"
        path = files.train if held_out else {"train": files.train, "val": files.val, "test": files.test}[split]
        if path is None:
            return None
        transforms = self._transforms(path)
        if transforms.lists is not None and path != files.train:
            raise BadArgument(f"{path}: lists of splits are honored in the training file only, {files.train}; remove them")
        frames = files.frames("train" if held_out else split, transforms.frames)
        if held_out:
            frames = [f for i, f in enumerate(frames) if (i % (self.holdout_every or 1) == 0) == (split == "val")]
        frames = thinned(frames, self.every[split], self.limit[split])
        if not frames:
            by_holdout = f" with holdout_every={self.holdout_every}" if held_out else ""
            raise BadArgument(f"{path}: no {split} views are left of {len(transforms.frames)} frames{by_holdout}")
        return transforms, frames

    def _transforms(self, path: Path) -> Transforms:
        """A file's content, read once, so that its warnings appear once."""
        if path not in self._read:
            self._read[path] = Transforms(
                path, needs_times=self.needs_times, lenses=self.is_capture, resolve=self.is_capture
            )
        return self._read[path]

    def _files(self) -> SplitFiles:
        if str(self.root) == "???":  # as recipes have it
            raise BadArgument("root: required, give --data.root=path/to/scene")
        if not os.path.isdir(self.root):  # Path.is_dir raises where the name is too long
            raise MissingFile(f"root: no folder {self.root}")
        if self._chosen is None:
            files = self.files
            self._chosen = choose_split_files(self.root, files["train"], files["val"], files["test"], self.held_out_every)
        return self._chosen


def check_counts(**values: int | None) -> None:
    """Each must be a positive integer, or None."""
    for name, value in values.items():
        if value is not None:
            check_integer(name, value, 1)
