"""A watch over what a stranger's file makes a process do: programs started, files written or removed elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOSTILE_MODULE = "fuzz_hostile_module"
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "os.startfile",
    "socket.connect",
)
_REMOVES = ("os.remove", "os.rmdir", "shutil.rmtree", "os.rename", "os.truncate", "os.chmod", "os.link", "os.symlink")
_watched: dict[str, Any] = {"folders": None, "seen": []}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    folders = _watched["folders"]
    if folders is None:
        return
    if event in _RUNS:
        _watched["seen"].append((event, repr(arguments)[:200]))
    elif event in _REMOVES or event == "os.mkdir":
        names = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
        if isinstance(arguments[-1], int) and arguments[-1] >= 0 and event in ("os.remove", "os.rmdir"):
            names = ()  # relative to an open folder: shutil.rmtree's, which has said which tree it removes
        for path in (os.path.realpath(os.fsdecode(name)) for name in names if isinstance(name, (str, bytes, os.PathLike))):
            if not path.startswith(folders):
                _watched["seen"].append((event, path))
    elif event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith((*folders, "/dev/", "/proc/")):
            _watched["seen"].append((event, path))


def _prefixes(folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(os.path.realpath(folder) for folder in folders)


@contextmanager
def nothing_done_outside(*folders: Path) -> Iterator[None]:
    """Fail where the block runs a program, or writes or removes a file outside of these folders."""
    if "hooked" not in _watched:
        sys.addaudithook(_audit)
        _watched["hooked"] = True
    _watched["seen"].clear()
    _watched["folders"] = _prefixes(folders)
    try:
        yield
    finally:  # also where the block raises: a refusal that comes too late is no refusal
        _watched["folders"] = None
        if _watched["seen"] or HOSTILE_MODULE in sys.modules:
            raise AssertionError(f"done outside: {_watched['seen']}, imported: {HOSTILE_MODULE in sys.modules}")


class _Lines:
    """What was seen, written at once: the process may be about to end."""

    def __init__(self, log: Path) -> None:
        self.file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, seen: tuple[str, str]) -> None:
        os.write(self.file, f"{seen[0]} {seen[1]}\n".encode(errors="replace"))


def report_to(log: Path, *folders: Path) -> None:
    """From now on to the end of this process, write what ``nothing_done_outside`` would fail on to a file, line by line."""
    _watched.update(seen=_Lines(log), folders=_prefixes(folders))
    sys.addaudithook(_audit)
