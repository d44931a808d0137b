"""From frames that a source has found to the views of a scene: pictures, masks and cameras, read and scaled alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.frames import Frame, unique_names
from lightning_nerf.data.images import picture_size, picture_turns, read_masks
from lightning_nerf.data.lenses import lens_tensors
from lightning_nerf.data.picture_files import open_pictures
from lightning_nerf.data.scene import Images, Scene

Intrinsics = Callable[[Frame, int, int], list[float]]  # fx, fy, cx, cy of a frame's picture of this width and height


def read_views(frames: Sequence[Frame], intrinsics: Intrinsics, downscale: int, root: Path) -> Scene:
    """The views of one frame or more, named by :func:`~lightning_nerf.data.frames.unique_names`."""
    pictures, sizes = open_pictures([f.image for f in frames], downscale)
    masks = None
    if any(f.mask for f in frames):
        masks = read_masks([f.mask for f in frames], sizes, downscale)
        if not any(bool(mask.any()) for mask in masks):
            where = frames[0].where.rsplit(": frame", 1)[0]
            raise BadArgument(f"{where}: the masks exclude every pixel of all {len(frames)} views")
    scaled = [
        [x / downscale for x in intrinsics(frame, width, height)]
        for frame, (height, width) in zip(frames, sizes, strict=True)
    ]
    depths = [f.depth for f in frames] if any(f.depth for f in frames) else None
    names = unique_names([f.image for f in frames], root)
    unit = frames[0].depth_unit if depths is None else next(f.depth_unit for f in frames if f.depth)
    return Scene(
        _cameras(frames, scaled, pictures),
        Images.from_pictures(pictures, masks),
        names,
        depth_paths=depths,
        depth_unit=unit,
        picture_paths=[f.image for f in frames],
        mask_paths=[f.mask for f in frames] if masks is not None else None,
    )


def no_views() -> Scene:
    """The scene of a split without views."""
    return Scene(_cameras([], [], []), Images.from_pictures([]), [])


def thinned(frames: Sequence[Frame], every: int = 1, limit: int | None = None) -> list[Frame]:
    """Frames 0, k, 2k, ..., and of these at most ``limit``, evenly spaced."""
    frames = frames[::every]
    count = min(limit or len(frames), len(frames))
    return [frames[i * len(frames) // count] for i in range(count)]


def camera_tensors(
    frames: Sequence[Frame], intrinsics: Intrinsics, size: Callable[[Frame], tuple[int, int] | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Poses [V, 3, 4], intrinsics [V, 4] and height and width [V, 2] of frames whose pictures are not read.

    Args:
        frames: one or more.
        intrinsics: of each.
        size: of each, where it is stated; otherwise that of the first picture is taken.
    """
    stated = [size(frame) for frame in frames]
    first = picture_size(frames[0].image) if None in stated else (0, 0)
    sizes = [each or first for each in stated]  # width, height
    values = [intrinsics(frame, *each) for frame, each in zip(frames, sizes, strict=True)]
    poses = torch.tensor([frame.c2w for frame in frames], dtype=torch.float32)
    return poses, torch.tensor(values, dtype=torch.float32), torch.tensor(sizes).flip(1)


def upright_poses(frames: Sequence[Frame]) -> Tensor:
    """Poses [V, 3, 4] with the axes of the pictures as their EXIF orientation wants them shown.

    A phone stores a portrait as it lies on its sensor, on its side, and camera files are of that.
    """
    poses = torch.tensor([frame.c2w for frame in frames], dtype=torch.float32)
    for pose, frame in zip(poses, frames, strict=True):
        for _ in range(picture_turns(frame.image)):
            right, up = pose[:, 0].clone(), pose[:, 1].clone()
            pose[:, 0], pose[:, 1] = up, -right
    return poses


def _cameras(frames: Sequence[Frame], intrinsics: list[list[float]], pictures: list[Tensor]) -> Cameras:
    n = len(frames)
    times = None if not frames or frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    bounds = [f.bounds for f in frames if f.bounds is not None]
    lens_model, lens = lens_tensors([f.lens for f in frames])
    return Cameras(
        torch.tensor([f.c2w for f in frames], dtype=torch.float32).view(n, 3, 4),
        torch.tensor(intrinsics, dtype=torch.float32).view(n, 4),
        torch.tensor([[p.shape[1], p.shape[0]] for p in pictures], dtype=torch.int64).view(n, 2),
        torch.tensor(bounds, dtype=torch.float32) if n and len(bounds) == n else None,
        times,
        lens_model,
        lens,
    )
