"""The sharpest frames of a video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.sfm import Count

ENDINGS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".3gp", ".mpg", ".mpeg", ".wmv")
FPS = 2.0  # frames that are taken per second, unless that makes too many
MOST = 300
_LONGER_SIDE = 640  # of the picture whose sharpness is measured
_REMEDY = "pip install 'imageio[ffmpeg]', or take a folder of photos"


class Video(NamedTuple):
    """What a video's header says, and its frames."""

    fps: float
    seconds: float
    frames: Iterator[np.ndarray]  # [H, W, 3] uint8


def open_video(path: Path) -> Video:
    """A video by imageio's ffmpeg plugin.

    Raises:
        BadArgument: where the plugin is missing or the file is no video.
    """
    try:
        import imageio_ffmpeg  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise BadArgument(f"{path}: videos are read by imageio-ffmpeg, which is not installed; {_REMEDY}") from error
    import imageio.v3 as iio

    try:
        header = iio.immeta(path, plugin="FFMPEG")
        fps, seconds = float(header["fps"]), float(header["duration"])
    except Exception as error:  # of many kinds, from the program
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BadArgument(f"{path}: cannot be read as a video ({reason})") from error
    if not (fps > 0 and seconds > 0 and math.isfinite(fps * seconds)):
        raise BadArgument(f"{path}: expected a video with a length, got {seconds} s at {fps} frames per second")
    return Video(fps, seconds, iter(iio.imiter(path, plugin="FFMPEG")))


def wanted_rate(video: Video, fps: float | None, n_frames: int | None) -> float:
    """How many frames to take per second of the video."""
    if n_frames is not None:
        return min(n_frames / video.seconds, video.fps)
    return min(fps or min(FPS, MOST / video.seconds), video.fps)


def sharpest(frames: Iterable[np.ndarray], fps: float, rate: float, count: Count) -> Iterator[np.ndarray]:
    """Of each 1 / ``rate`` seconds the frame with the largest :func:`sharpness`; ``count`` gets how many are read."""
    best: tuple[float, np.ndarray] | None = None
    interval = 0
    for i, frame in enumerate(frames):
        if int(i * rate / fps + 1e-9) != interval and best is not None:
            yield best[1]
            best = None
        interval = int(i * rate / fps + 1e-9)
        value = sharpness(frame)
        if best is None or value > best[0]:
            best = value, frame.copy()
        count(i + 1)
    if best is not None:
        yield best[1]


def sharpness(frame: np.ndarray) -> float:
    """Variance of the Laplacian of the grey picture, at most 640 pixels wide and high, so that noise counts little."""
    grey = Image.fromarray(frame).convert("L")
    grey = grey.reduce(max(1, math.ceil(max(grey.size) / _LONGER_SIDE)))
    values = np.asarray(grey, np.float32)
    middle = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * middle).var()) if middle.size else 0.0


def take_frames(video: Video, rate: float, folder: Path, count: Count) -> list[str]:
    """Write the sharpest frames as JPEG files; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for frame in sharpest(video.frames, video.fps, rate, count):
        names.append(f"frame_{len(names) + 1:05d}.jpg")
        Image.fromarray(frame).save(folder / names[-1], quality=97, subsampling=0)
    if len(names) < 3:
        raise BadArgument(f"--fps, --n_frames: expected at least 3 frames, got {len(names)} of {video.seconds:.1f} s")
    return names
