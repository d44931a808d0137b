"""Cameras from a file, to render with."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.frames import Transforms


def read_cameras(path: Path, train: Cameras) -> Cameras:
    """The cameras of a ``transforms.json``; its pictures need not exist.

    The size is the file's ``w`` and ``h``, else that of the first training camera, whose bounds are taken too.

    Raises:
        MissingFile, BadArgument: naming the file and the frame.
    """
    transforms = Transforms(path, cameras_only=True)
    frames = transforms.frames
    size = transforms.size(frames[0])
    if size is None:
        height, width = train.shape(0)
        size = width, height
    times = None if frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    c2w = torch.tensor([f.c2w for f in frames], dtype=torch.float32)
    intrinsics = torch.tensor([transforms.intrinsics(frame, *size) for frame in frames])
    cameras = Cameras.of_one_size(c2w, intrinsics, *size, times=times)
    bounds = train.bounds
    return cameras if bounds is None else cameras._replace(bounds=bounds[:1].expand(len(frames), 2).contiguous())
