"""Where a run's files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_nerf.files import check_writable


class WritesFiles(L.Callback):
    """The base of callbacks that write into the run folder: that this is possible is seen before anything else is done."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse a folder that nothing can be written to."""
        check_run_folder(trainer)


def run_folder(trainer: L.Trainer) -> Path:
    """The logger's folder, else the Trainer's root folder; created."""
    folder = _folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_run_folder(trainer: L.Trainer) -> None:
    """Can the run's files be written? It need not be there yet, and is not made.

    Raises:
        OSError: naming the folder and the reason.
    """
    check_writable("the run's folder (logger or default_root_dir)", _folder(trainer))


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)
