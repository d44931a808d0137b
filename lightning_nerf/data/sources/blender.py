"""The NeRF-Synthetic ("Blender") format: ``transforms_{split}.json`` and the pictures that it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.checks import BadArgument, MissingFile, check_instance, check_integer
from lightning_nerf.data.frames import Frame, Transforms
from lightning_nerf.data.images import load_images, load_masks
from lightning_nerf.data.scene import Images, Scene
from lightning_nerf.data.source import Source
from lightning_nerf.scene_box import SceneBox

BOX = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))  # holds the eight original scenes


class BlenderSource(Source):
    """A scene in the NeRF-Synthetic format (Mildenhall et al., "NeRF", ECCV 2020).

    Each split has a ``transforms_{split}.json`` with ``camera_angle_x`` (radians; or else ``fl_x``, and optionally ``cx``,
    ``cy``, ``w``, in pixels) and ``frames``, each with ``file_path`` (relative to the folder, with or without suffix;
    PNG or JPEG, RGBA, RGB or grey), ``transform_matrix`` (camera to world, 4x4 or 3x4), and optionally ``mask_path`` (a
    picture whose zeros are never drawn) and ``time``. Frames whose picture or mask is missing are skipped with a warning.

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

    def read(self, split: str) -> Scene:
        """The views that the arguments leave of a split; names are file stems, or paths if two are alike."""
        if str(self.root) == "???":  # as recipes have it
            raise BadArgument("root: required, give --data.root=path/to/scene")
        if not self.root.is_dir():
            raise MissingFile(f"root: no folder {self.root}")
        held_out = self.holdout_every is not None and split != "test"
        path = self.root / f"transforms_{self.files['train' if held_out else split]}.json"
        if split == "val" and self.files["val"] == "val" and not path.is_file() and not held_out:
            rank_zero_info(f"{self.root} has no {path.name}: no validation views (holdout_every=10 makes some of train).")
            return Scene(_cameras([], [], []), Images.from_pictures([]), [], _box())
        transforms = Transforms(path)
        frames = transforms.frames
        if held_out:
            frames = [f for i, f in enumerate(frames) if (i % (self.holdout_every or 1) == 0) == (split == "val")]
        frames = frames[:: self.every[split]]
        limit = min(self.limit[split] or len(frames), len(frames))
        frames = [frames[i * len(frames) // limit] for i in range(limit)]
        if not frames:
            raise BadArgument(f"{path}: no {split} views are left with holdout_every={self.holdout_every}")
        return _scene(transforms, frames, self.downscale, _names([f.image for f in frames], self.root))


def check_counts(**values: int | None) -> None:
    """Each must be a positive integer, or None."""
    for name, value in values.items():
        if value is not None:
            check_integer(name, value, 1)


def _scene(transforms: Transforms, frames: list[Frame], downscale: int, names: list[str]) -> Scene:
    pictures, (height, width) = load_images([f.image for f in frames], downscale)
    masks = None
    if any(f.mask for f in frames):
        masks = load_masks([f.mask for f in frames], height, width, downscale)
        if not bool(masks.any()):
            raise BadArgument(f"{transforms.path}: the masks exclude every pixel of all {len(frames)} views")
    intrinsics = [[x / downscale for x in transforms.intrinsics(width, height)] for _ in frames]
    cameras = _cameras(frames, intrinsics, list(pictures))
    return Scene(cameras, Images.from_pictures(list(pictures), None if masks is None else list(masks)), names, _box())


def _cameras(frames: list[Frame], intrinsics: list[list[float]], pictures: list[Tensor]) -> Cameras:
    n = len(frames)
    times = None if not frames or frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    return Cameras(
        torch.tensor([f.c2w for f in frames], dtype=torch.float32).view(n, 3, 4),
        torch.tensor(intrinsics, dtype=torch.float32).view(n, 4),
        torch.tensor([[p.shape[1], p.shape[0]] for p in pictures], dtype=torch.int64).view(n, 2),
        times=times,
    )


def _box() -> SceneBox:
    return SceneBox(torch.tensor(BOX))


def _names(files: Sequence[Path], root: Path) -> list[str]:
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return ["_".join(Path(os.path.relpath(file, root)).with_suffix("").parts) for file in files]
