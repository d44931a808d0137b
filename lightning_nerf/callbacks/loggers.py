"""What loggers are given beside numbers: pictures and films; and which W&B run a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf import lightning_names
from lightning_nerf.checkpoint_io import read_checkpoint

WANDB_RUN_KEY = "wandb_run_id"  # in a checkpoint


def logged_step(trainer: L.Trainer) -> int:
    """The step that Lightning names to loggers: optimizer steps before this one."""
    return lightning_names.logged_step(trainer)


def log_image(trainer: L.Trainer, key: str, image: np.ndarray) -> None:
    """Hand a picture [H, W, 3] uint8 to each logger that takes pictures; a failure there costs a warning, not the run.

    Those are loggers with ``log_image(key, images, step)``, such as WandbLogger, and those whose ``experiment`` has
    TensorBoard's ``add_image``.
    """
    step = logged_step(trainer)
    for logger in trainer.loggers:
        with run_goes_on(f"{type(logger).__name__}: picture {key!r}"):
            experiment = getattr(logger, "experiment", None)
            if hasattr(logger, "log_image"):
                logger.log_image(key, [image], step=step)  # type: ignore[attr-defined]
            elif hasattr(experiment, "add_image"):
                experiment.add_image(key, image, step, dataformats="HWC")  # type: ignore[union-attr]


def log_video(trainer: L.Trainer, key: str, path: Path) -> None:
    """Hand a film to each logger with ``log_video(key, videos, step)``, such as WandbLogger; as :func:`log_image`."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_video"):
            with run_goes_on(f"{type(logger).__name__}: film {key!r}"):
                logger.log_video(key, [str(path)], step=logged_step(trainer))  # type: ignore[attr-defined]


@contextmanager
def run_goes_on(what: str) -> Iterator[None]:
    """Turn an exception into a warning: no picture is worth a training."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} is lost, the run goes on: {type(error).__name__}: {error}")


def wandb_run(trainer: L.Trainer | None) -> str | None:
    """The id of the W&B run that a Trainer logs to, if there is one."""
    loggers = [] if trainer is None else trainer.loggers
    return next((logger.version for logger in loggers if isinstance(logger, WandbLogger)), None)


def wandb_run_id(checkpoint: str | Path, weights_only: bool | None = None) -> str | None:
    """The id of the W&B run that wrote a checkpoint, for ``WandbLogger(id=...)``: logging then goes on in that run.

    Lightning begins W&B runs before it opens the checkpoint of ``fit(ckpt_path=...)``, so this has to be asked first.
    None where there is no such file, or no W&B run wrote it.

    Raises:
        ValueError: the file cannot be read; with ``weights_only=False`` it may hold any Python objects.
    """
    try:
        return read_checkpoint(checkpoint, "cpu", weights_only).get(WANDB_RUN_KEY)
    except FileNotFoundError:
        return None
