"""Files that are whole or not there, and errors that say which file and why."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lightning_nerf.checks import BadFile

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is finished and the disk has it; until then what was there stays.

    Folders are made; what an earlier write that was killed has left there is removed.

    Raises:
        OSError: naming ``path``, and whether the disk is full.
    """
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, and with an ending of its own: nobody who looks for files of the other's kind must find it.
        for leftover in path.parent.glob(f".{path.name}.*.part"):
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Have an OSError of the block name ``path``, also where a library has put an error of its own in its place."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        reason = "the disk is full" if cause.errno in _FULL else cause.strerror or str(cause)
        raise BadFile(cause.errno, f"cannot be written, {reason}", str(path)) from error


def check_writable(name: str, folder: Path) -> None:
    """Can files be made in a folder, or in the one that it would be made in? Leaves nothing behind.

    Raises:
        OSError: naming the folder and the reason.
    """
    there = folder.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        message = f"{name}: nothing can be written there, {error.strerror} ({there})"
        raise BadFile(error.errno, message, str(folder)) from error


def _sync_folder(folder: Path) -> None:
    """Have the disk know the new name too."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
