"""Files that are whole or not there, and errors that say which file and why."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lightning_nerf.checks import BadFile

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ENDING = ".part"  # of temporary files, so that no search for the finished ones finds them
_OWNER = re.compile(r"([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}")  # host, process, a name of its own
_FORGOTTEN = 24 * 3600.0  # seconds without a write, after which a file of another host belongs to no living process
_BEING_WRITTEN: set[str] = set()  # temporary files of this process


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is finished and the disk has it; until then what was there stays.

    Folders are made. Any number of threads and processes may write one path at once: each has a temporary file of its own,
    and the last to finish stays. What a killed process has left there is removed.

    Raises:
        OSError: naming ``path``, and whether the disk is full.
    """
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_prefix(path)}{_host()}.{os.getpid()}.{secrets.token_hex(4)}{_ENDING}")
        _BEING_WRITTEN.add(temporary.name)
        try:
            _remove_leftovers(path)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            _BEING_WRITTEN.discard(temporary.name)
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


def _prefix(path: Path) -> str:
    """What the names of a path's temporary files begin with: hidden, and short enough for any file system."""
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()}."


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this path whose processes are dead."""
    prefix = _prefix(path)
    with os.scandir(path.parent) as entries:
        found = [e for e in entries if e.name.startswith(prefix) and e.name.endswith(_ENDING)]
    for entry in found:
        with suppress(OSError):  # another process may remove it at this moment, or own it
            owner = _OWNER.fullmatch(entry.name[len(prefix) : -len(_ENDING)])
            if owner is not None and owner[1] == _host() and os.name == "posix":
                dead = entry.name not in _BEING_WRITTEN if int(owner[2]) == os.getpid() else not _is_alive(int(owner[2]))
            else:  # a process that cannot be asked
                dead = time.time() - entry.stat().st_mtime > _FORGOTTEN
            if dead:
                os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Have the disk know the new name too."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
