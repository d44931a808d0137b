"""Cameras from a file, to render with."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.frame_times import near_miss
from lightning_nerf.data.frames import MAX_FRAMES, Transforms
from lightning_nerf.data.json_file import read_json_object


def read_cameras(path: Path, train: Cameras, reads_times: bool = True) -> Cameras:
    """The cameras of a ``transforms.json``; its pictures need not exist.

    The size is the file's ``w`` and ``h``, else that of the first training camera, whose bounds are taken too. With
    ``reads_times=False`` the cameras have no times, and those in the file may be anything.

    Raises:
        MissingFile, BadArgument: naming the file and the frame.
    """
    transforms = Transforms(path, cameras_only=True, reads_times=reads_times)
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


def time_hint(path: Path) -> str:
    """A hint such as "; frame 0 has 'tiem'" for a file of cameras without times, or an empty string."""
    entries = read_json_object(path, "transform_matrix", MAX_FRAMES).get("frames")
    hints = (near_miss(f"frame {i}", entry, "time") for i, entry in enumerate(entries if isinstance(entries, list) else []))
    return next(filter(None, hints), "")
