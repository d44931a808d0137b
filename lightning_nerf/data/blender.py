"""The NeRF-Synthetic ("Blender") format: ``transforms_{split}.json`` and the pictures that it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf.checks import BadArgument, MissingFile, check_instance, check_integer
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.frames import Frame, Transforms, unique_names
from lightning_nerf.data.images import read_masks, read_pictures
from lightning_nerf.data.splits import choose_split_files
from lightning_nerf.data.views import Views


class BlenderData(NeRFDataModule):
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
        aabb: the box that holds the scene, two corners. None: [-1.5, 1.5]^3, which suits the eight original scenes.
        near, far: bounds of the rays; they are clipped to the box besides.
        background, eval_background: see :class:`NeRFDataModule`.
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
        aabb: Sequence[Sequence[float]] | None = None,
        near: float = 0.05,
        far: float = 1000.0,
        background: str = "white",
        eval_background: str | None = None,
    ) -> None:
        check_instance("root", root, str, os.PathLike)
        box = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5)) if aabb is None else aabb
        super().__init__(box, near, far, background, eval_background)
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
    def scene_name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    def load(self, split: str) -> tuple[Views, list[str]]:
        """The views that the arguments leave of a split, and their names: file stems, or paths if two are alike."""
        if str(self.root) == "???":  # as recipes have it
            raise BadArgument("root: required, give --data.root=path/to/scene")
        if not os.path.isdir(self.root):  # unlike Path.is_dir, also where the name is too long
            raise MissingFile(f"root: no folder {self.root}")
        held_out = self.holdout_every is not None and split != "test"
        files = choose_split_files(self.root, *(self.files[name] for name in ("train", "val", "test")))
        if split == "train" and files.message:
            rank_zero_info(files.message)
        path = files.train if held_out else {"train": files.train, "val": files.val, "test": files.test}[split]
        if path is None and split == "val":
            rank_zero_info(
                f"{self.root} has no transforms_val.json: no validation views (holdout_every=10 makes some of train)."
            )
            return _no_views(), []
        if path is None:
            raise MissingFile(files.message or "")
        transforms = Transforms(path)
        frames = files.frames("train" if held_out else split, transforms.frames)
        if held_out:
            frames = [f for i, f in enumerate(frames) if (i % (self.holdout_every or 1) == 0) == (split == "val")]
        frames = frames[:: self.every[split]]
        limit = min(self.limit[split] or len(frames), len(frames))
        frames = [frames[i * len(frames) // limit] for i in range(limit)]
        if not frames:
            raise BadArgument(f"{path}: no {split} views are left with holdout_every={self.holdout_every}")
        return _load_views(transforms, frames, self.downscale), unique_names([f.image for f in frames], self.root)


def check_counts(**values: int | None) -> None:
    """Each must be a positive integer, or None."""
    for name, value in values.items():
        if value is not None:
            check_integer(name, value, 1)


def _load_views(transforms: Transforms, frames: list[Frame], downscale: int) -> Views:
    pictures, sizes = read_pictures([f.image for f in frames], downscale)
    (height, width), first = sizes[0], frames[0].image
    for frame, size in zip(frames, sizes, strict=True):
        if size != sizes[0]:
            raise BadArgument(
                f"{frame.image}: {size[1]}x{size[0]} pixels, but {first} has {width}x{height}; the images of a split must "
                "have one size"
            )
    pixels = None
    if any(f.mask for f in frames):
        masks = read_masks([f.mask for f in frames], sizes, downscale)
        pixels = torch.stack(masks).view(-1).nonzero()[:, 0]
        if not len(pixels):
            raise BadArgument(f"{transforms.path}: the masks exclude every pixel of all {len(frames)} views")
    intrinsics = torch.tensor([transforms.intrinsics(f, width, height) for f in frames]) / downscale
    c2w = torch.tensor([f.c2w for f in frames], dtype=torch.float32)
    times = None if frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    return Views(torch.stack(pictures), c2w, intrinsics, times, pixels)


def _no_views() -> Views:
    return Views(torch.empty((0, 1, 1, 3), dtype=torch.uint8), torch.empty(0, 3, 4), torch.empty(0, 4))
