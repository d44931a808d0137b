"""The folders of earlier runs: the newest checkpoint to go on from, and no trace of a run that was refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from lightning_nerf.checkpoint_io import is_url
from lightning_nerf.checks import BadArgument
from lightning_nerf.cli_words import newest
from lightning_nerf.recorded import Plain

_OF_NO_WEIGHT = ("config.yaml", "hparams.yaml", "metrics.csv")  # what a run leaves before its first check


def find_latest(run_config: Plain) -> Path | None:
    """The newest checkpoint that a fit of this configuration would go on from; None: there is none.

    It is looked for in the folder of ModelCheckpoint, if one is given, or of the logger's run, if its id or version is
    given. Otherwise it is of any run under the logger's name whose model is of the same class and whose data are the same.

    Args:
        run_config: of the fit, as its ``config.yaml`` would have it.
    """
    trainer = run_config["trainer"]
    folders = _checkpoint_folders(trainer)
    if folders:
        return newest(file for folder in folders for file in Path(folder).rglob("*.ckpt"))
    root, run = runs_folder(trainer)
    if run is not None:
        return newest((root / run).rglob("*.ckpt"))
    files = sorted(root.glob("*/**/*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    wanted = _identity(run_config)
    return next((file for file in files if _identity(_config_of(root, file)) == wanted), None)


def saves_to_url(trainer: Plain) -> bool:
    """Whether a Trainer's checkpoints, or its runs, go to a URL, where :func:`find_latest` does not look."""
    loggers = [(logger.get("init_args") or {}).get("save_dir") for logger in _listed(trainer.get("logger"))]
    return any(is_url(str(place)) for place in [*_checkpoint_folders(trainer), *loggers, trainer.get("default_root_dir")])


def _checkpoint_folders(trainer: Plain) -> list[str]:
    callbacks = [callback.get("init_args") or {} for callback in _listed(trainer.get("callbacks") or [])]
    return [arguments["dirpath"] for arguments in callbacks if arguments.get("dirpath")]


def require_latest(run_config: Plain) -> Path:
    """:func:`find_latest`, or a ValueError that says where it was looked for."""
    found = find_latest(run_config)
    if found is None:
        root, _ = runs_folder(run_config["trainer"])
        raise BadArgument(
            f"--resume: no run of this model and these data has left a checkpoint in {root}; give the same recipe, overlay "
            "and folder as then, or name a checkpoint or a run's folder with --ckpt_path; leave out --resume to begin"
        )
    return found


def runs_folder(trainer: Plain) -> tuple[Path, str | None]:
    """The folder of all runs of a Trainer's first logger, and the name of this run if the configuration gives it."""
    loggers = _listed(trainer.get("logger") or [])
    given = (loggers[0].get("init_args") or {}) if loggers else {}
    root = Path(given.get("save_dir") or trainer.get("default_root_dir") or ".")
    if not loggers:
        return root / "lightning_logs", None
    is_wandb = loggers[0].get("class_path", "").endswith("WandbLogger")
    name = given.get("project" if is_wandb else "name") or "lightning_logs"
    version = given.get("id") or given.get("version") if is_wandb else given.get("version")
    return root / name, f"version_{version}" if isinstance(version, int) else version


@contextmanager
def refused_runs_leave_nothing(trainer: L.Trainer) -> Iterator[None]:
    """Remove the folder that a logger made for a run that ended with an error before its first step."""
    logger = trainer.logger
    save_dir = None if logger is None else logger.save_dir
    root = None if save_dir is None or logger is None or "://" in save_dir else Path(save_dir, str(logger.name))
    before = set(root.iterdir()) if root is not None and root.is_dir() else set()
    try:
        yield
    except Exception:
        started = trainer.fit_loop.epoch_loop.total_batch_idx >= 0
        if root is not None and root.is_dir() and not started and trainer.is_global_zero:
            for folder in set(root.iterdir()) - before:
                if folder.is_dir() and folder.name == _name(trainer) and _is_empty(folder):
                    shutil.rmtree(folder, ignore_errors=True)
        raise


def _name(trainer: L.Trainer) -> str:
    version = None if trainer.logger is None else trainer.logger.version
    return version if isinstance(version, str) else f"version_{version}"


def _is_empty(folder: Path) -> bool:
    return all(file.is_dir() or file.name in _OF_NO_WEIGHT for file in folder.rglob("*"))


def _listed(value: object) -> list[Plain]:
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]


def _identity(config: Plain) -> Any:
    model, data = config.get("model"), config.get("data")
    return (model or {}).get("class_path"), data


def _config_of(root: Path, checkpoint: Path) -> Plain:
    folder = root / checkpoint.relative_to(root).parts[0]
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
