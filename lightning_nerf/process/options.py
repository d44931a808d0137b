"""What ``lightning-nerf process`` was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

CAMERA_MODELS = (
    "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE",
    "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE",
)  # fmt: skip
MATCHERS = ("auto", "exhaustive", "sequential")
MAPPERS = ("incremental", "global")


class Options(NamedTuple):
    """The arguments of the command."""

    source: Path  # a folder of photos, or a video
    out: Path
    fps: float | None = None  # of the frames taken from a video
    n_frames: int | None = None  # in place of fps
    matcher: str = "auto"
    mapper: str = "incremental"
    camera_model: str = "OPENCV"
    single_camera: bool | None = None  # None: photos of one size, focal length and camera name share one
    max_size: int = 1600  # of the longer side, in pixels, where features are looked for
    threads: int = 1
