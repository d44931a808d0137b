"""Where frames go: PNG files in a folder, one GIF, one MP4, one NPY.

Frames are [H, W, 3] uint8 (a PNG also takes [H, W, 4]), those of an NPY float32; all of one size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from lightning_nerf.callbacks.films import FFMPEG_REMEDY, H264, find_ffmpeg, unfinished, whole_film
from lightning_nerf.checks import BadArgument
from lightning_nerf.files import check_writable, whole_file

FILES = (".png", ".gif", ".mp4", ".npy")
_OTHERS = (
    ".apng", ".avi", ".bmp", ".exr", ".hdr", ".jpeg", ".jpg", ".json", ".mkv", ".mov", ".npz", ".pfm", ".pt", ".tif",
    ".tiff", ".webm", ".webp", ".zip",
)  # fmt: skip
_RAW = (".exr", ".hdr", ".npz", ".pfm", ".pt", ".tif", ".tiff")


class Writer(ABC):
    """Takes the frames of one channel one by one; ``path`` is what it leaves."""

    takes_numbers = False  # float32 in place of pictures

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def add(self, frame: np.ndarray, name: str) -> None:
        """The next frame."""

    def close(self) -> None:  # noqa: B027  files of their own need no end
        """After the last frame."""

    def abort(self) -> None:  # noqa: B027
        """After an error or a signal, in place of :meth:`close`: leave no part of a file under its name."""


class PNGs(Writer):
    """``path/{name}.png``, or ``path`` itself where that ends in .png."""

    def add(self, frame: np.ndarray, name: str) -> None:
        """See :meth:`Writer.add`."""
        with whole_file(self.path if self.path.suffix == ".png" else self.path / f"{name}.png") as file:
            imageio.imwrite(file, frame, plugin="pillow", extension=".png")


class NPY(Writer):
    """One array, float32: the frame, or all frames behind each other; they are kept until the end."""

    takes_numbers = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.frames: list[np.ndarray] = []

    def add(self, frame: np.ndarray, name: str) -> None:
        """See :meth:`Writer.add`."""
        if self.frames and frame.shape != self.frames[0].shape:
            raise BadArgument(f"--out: {self.path} takes frames of one size; give --resolution, or a folder")
        self.frames.append(frame.astype(np.float32))

    def close(self) -> None:
        """Write what there is."""
        with whole_file(self.path) as file:
            np.save(file, self.frames[0] if len(self.frames) == 1 else np.stack(self.frames))


class GIF(Writer):
    """An endless GIF, each frame in its own 256 colors; of finished frames, one byte a pixel is kept until the end."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path)
        self.fps = fps
        self.frames: list[Image.Image] = []

    def add(self, frame: np.ndarray, name: str) -> None:
        """See :meth:`Writer.add`."""
        self.frames.append(Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE))

    def close(self) -> None:
        """Write what there is."""
        if self.frames:
            # The format counts hundredths of a second, and players take 0 and 1 for "slowly".
            duration = 10 * max(2, round(100 / self.fps))
            first, *others = self.frames
            with whole_film(self.path) as path:
                first.save(path, save_all=True, append_images=others, duration=duration, loop=0)


class MP4(Writer):
    """H.264 by ffmpeg, frame by frame; see :class:`~lightning_nerf.callbacks.films.H264`."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path)
        program = find_ffmpeg()
        if program is None:
            raise BadArgument(f"--out: {path} needs ffmpeg: {FFMPEG_REMEDY}; or name a .gif or a folder")
        self.film = H264(unfinished(path), fps, program)

    def add(self, frame: np.ndarray, name: str) -> None:
        """See :meth:`Writer.add`."""
        self.film.add(frame)

    def close(self) -> None:
        """Have the file finished; then it takes its name."""
        with whole_film(self.path):
            self.film.close()

    def abort(self) -> None:
        """See :meth:`Writer.abort`."""
        self.film.abort()
        unfinished(self.path).unlink(missing_ok=True)


def check_out(out: Path, n_frames: int | None = None) -> None:
    """Can frames be written there? A ValueError says why not, before anything is rendered."""
    suffix = out.suffix.lower()
    if suffix in _OTHERS:
        hint = "; for raw depth, --channels depth with a name that ends in .npy" if suffix in _RAW else ""
        raise BadArgument(
            f"--out: expected a folder (for PNG files), or a name that ends in {', '.join(FILES)}, got {out}{hint}"
        )
    if suffix == ".mp4" and find_ffmpeg() is None:
        raise BadArgument(f"--out: {out} needs ffmpeg: {FFMPEG_REMEDY}; or name a .gif or a folder")
    if suffix == ".png" and n_frames is not None and n_frames > 1:
        raise BadArgument(f"--out: {out} takes one picture, there are {n_frames}: give a folder, or --n_frames 1")
    if suffix not in FILES and out.is_file():
        raise BadArgument(f"--out: expected a folder, {out} is a file")
    if suffix in FILES and out.is_dir():
        raise BadArgument(f"--out: expected a file, {out} is a folder")
    check_writable("--out", out.parent if suffix in FILES else out)


def open_writers(out: Path, channels: Sequence[str], fps: float) -> dict[str, Writer]:
    """A writer for each channel. Of several, each has its name in the path: ``out/depth/``, or ``out_depth.mp4``."""
    suffix = out.suffix.lower()
    writers: dict[str, Writer] = {}
    for channel in channels:
        path = out
        if len(channels) > 1:
            path = out.with_name(f"{out.stem}_{channel}{suffix}") if suffix in FILES else out / channel
        (path.parent if suffix in FILES else path).mkdir(parents=True, exist_ok=True)
        films: dict[str, Callable[[], Writer]] = {
            ".gif": partial(GIF, path, fps), ".mp4": partial(MP4, path, fps), ".npy": partial(NPY, path),
        }  # fmt: skip
        writers[channel] = films.get(suffix, partial(PNGs, path))()
    return writers
