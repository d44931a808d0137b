"""Where a run's files go."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import lightning as L

from lightning_nerf.files import check_writable

_NAME = "the run's folder (the logger's save_dir or default_root_dir)"
_UNLOGGED: WeakKeyDictionary[L.Trainer, Path] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of this run and no other; created. Call it on every rank: it asks rank 0.

    ``save_dir/name/version`` of the first logger, where Lightning also puts ``checkpoints``: with a WandbLogger
    ``save_dir/project/id``. Without a logger ``default_root_dir/lightning_logs/version_N``, a new one for each Trainer.
    With ``fast_dev_run`` one that the process removes.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(trainer.strategy.broadcast(str(_folder(trainer)) if trainer.is_global_zero else ""))
    if not folder.is_dir():
        check_writable(_NAME, folder)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def existing_run_folder(trainer: L.Trainer) -> Path | None:
    """:func:`run_folder`, if it can be named without making one; None otherwise. Call it on every rank."""
    named = trainer in _UNLOGGED or (trainer.logger is not None and trainer.logger.version is not None)
    folder = trainer.strategy.broadcast(str(_folder(trainer)) if named and trainer.is_global_zero else "")
    return Path(folder) if folder else None


class WritesRunFiles(L.Callback):
    """Base of callbacks that write into the run folder: that this is possible is seen before anything else is done."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder."""
        run_folder(trainer)


def check_run_folder(trainer: L.Trainer) -> None:
    """Can the run's files be written? Their folder need not be there yet, and is not made.

    Raises:
        OSError: naming the folder and the reason.
    """
    logger = trainer.logger
    folder = str((None if logger is None else logger.save_dir) or trainer.default_root_dir)
    if not trainer.fast_dev_run and "://" not in folder:  # type: ignore[attr-defined]
        check_writable(_NAME, Path(folder))


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
    check_writable(_NAME, root)
    root.mkdir(parents=True, exist_ok=True)
    for n in count():
        try:
            (folder := root / f"version_{n}").mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


@cache
def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="fast_dev_run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
