"""Films that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_nerf.files import named_errors


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
