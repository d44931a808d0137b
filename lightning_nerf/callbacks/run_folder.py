"""Where a run's files go."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import lightning as L


def run_folder(trainer: L.Trainer) -> Path:
    """The logger's folder, else the Trainer's root folder; created. With ``fast_dev_run`` one that the process removes."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _scratch()
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="fast_dev_run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
