"""Films that are whole or not there, and MP4 by the program ffmpeg."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from lightning_nerf.files import named_errors

FFMPEG_REMEDY = "pip install 'imageio[ffmpeg]', or install ffmpeg so that it is on PATH"


def unfinished(path: Path) -> Path:
    """Where a film is written before it takes its name: hidden, beside it, with its ending, which says the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


@contextmanager
def whole_film(path: Path) -> Iterator[Path]:
    """A path to write to; what is there takes the name ``path`` at the end, or is removed after an error or a signal.

    Raises:
        OSError: naming ``path``.
    """
    with named_errors(path):
        temporary = unfinished(path)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def find_ffmpeg() -> str | None:
    """The program ffmpeg: imageio-ffmpeg's, which always has H.264, else the one on PATH; None: there is neither."""
    try:
        import imageio_ffmpeg  # type: ignore[import-not-found]

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the package may come without the program
        return shutil.which("ffmpeg")


class H264:
    """Frames [H, W, 3] uint8 of one size, one by one into an MP4 file. An odd side repeats its last row or column.

    Args:
        path: the file; unfinished until :meth:`close` returns.
        fps: frames per second.
        program: of :func:`find_ffmpeg`.
    """

    def __init__(self, path: Path, fps: float, program: str) -> None:
        self.path = path
        self.fps = fps
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None

    def add(self, frame: np.ndarray) -> None:
        """The next frame.

        Raises:
            OSError: with what ffmpeg says.
        """
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # the codec wants even sides
        process = self._process
        if process is None:
            process = self._process = self._started(frame.shape[1], frame.shape[0])
        assert process.stdin is not None
        try:
            process.stdin.write(frame.tobytes())
        except BrokenPipeError:
            self._end()
            raise

    def close(self) -> None:
        """Have the file finished.

        Raises:
            OSError: with what ffmpeg says.
        """
        self._end()

    def abort(self) -> None:
        """End ffmpeg at once; what is in the file is not whole."""
        if self._process is not None:
            self._process.kill()
            with suppress(OSError):
                self._end()

    def _started(self, width: int, height: int) -> subprocess.Popen[bytes]:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self.fps:g}", "-i", "-"]
        codec = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "15", "-movflags", "+faststart"]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  a pipe could fill up while frames are sent
        words = [self.program, "-y", "-loglevel", "error", *source, *codec, str(self.path)]
        # In a session of its own Ctrl-C does not reach it: this process decides what becomes of the film.
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages, start_new_session=True
        )

    def _end(self) -> None:
        process, messages = self._process, self._messages
        if process is None or messages is None:
            return
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()  # a signal may end this, and abort comes here again
        self._process = self._messages = None
        with messages:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines()
        if code:
            reason = f": {said[-1]}" if said else ""
            raise OSError(errno.EIO, f"{self.program} ended with code {code}{reason}")
