"""Finds out where the host waits for the device, by means of torch's debug mode for that."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_MESSAGE = "called a synchronizing CUDA operation"
_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@contextmanager
def synchronizations() -> Iterator[list[str]]:
    """Collect the places in the block where the host waits for the device, as ``file:line: code``; nothing is stopped."""
    places: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            if _MESSAGE in str(message):
                places.append(_place())
            else:
                shown(message, *args, **kwargs)

        warnings.filterwarnings("always", message=f".*{_MESSAGE}")
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        warnings.showwarning = show
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextmanager
def unwatched() -> Iterator[None]:
    """A block that may wait for the device, whatever the debug mode says. Capturing does: once."""
    before = torch.cuda.get_sync_debug_mode()
    if before:
        torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        if before:
            torch.cuda.set_sync_debug_mode(before)


def _place() -> str:
    """The innermost line that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_INSIDE) and Path(frame.filename).name not in ("warnings.py", "_py_warnings.py"):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "an unknown place"
