"""Where a run's files go."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import lightning as L

_UNLOGGED: WeakKeyDictionary[L.Trainer, Path] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of this run and no other; created. Call it on every rank: it asks rank 0.

    ``save_dir/name/version`` of the first logger, where Lightning also puts ``checkpoints``: with a WandbLogger
    ``save_dir/project/id``. Without a logger ``default_root_dir/lightning_logs/version_N``, a new one for each Trainer.
    With ``fast_dev_run`` one that the process removes.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder = Path(trainer.strategy.broadcast(str(_folder(trainer)) if trainer.is_global_zero else ""))
    _make(folder)
    return folder


class WritesRunFiles(L.Callback):
    """Base of callbacks that write into the run folder: a folder that takes no files is an error before training."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder."""
        run_folder(trainer)


def _folder(trainer: L.Trainer) -> Path:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _scratch()
    logger = trainer.logger
    version = None if logger is None else logger.version
    if logger is None or version is None:
        if trainer not in _UNLOGGED:
            _UNLOGGED[trainer] = _unused(Path(trainer.default_root_dir, "lightning_logs"))
        return _UNLOGGED[trainer]
    # As ModelCheckpoint does it; Trainer.log_dir is all runs' common folder with most loggers.
    version = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def _unused(root: Path) -> Path:
    _make(root)
    for n in count():
        try:
            (folder := root / f"version_{n}").mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _make(folder: Path) -> None:
    where = "the logger's save_dir, or the Trainer's default_root_dir, says where it lies"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"run folder: cannot make {folder} ({error.strerror}); {where}") from error
    if not os.access(folder, os.W_OK):
        raise OSError(f"run folder: cannot write to {folder}; {where}")


@cache
def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="fast_dev_run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
