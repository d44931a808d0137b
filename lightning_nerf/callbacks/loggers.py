"""Pictures, films and histograms for loggers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.wandb_run import wandb_run_id

__all__ = ["log_histogram", "log_image", "log_video", "logged_step", "wandb_run_id", "warning_instead"]


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
        with warning_instead(f"{type(logger).__name__}: picture {key!r}"):
            experiment = getattr(logger, "experiment", None)
            if hasattr(logger, "log_image"):
                logger.log_image(key, [image], step=step)  # type: ignore[attr-defined]
            elif hasattr(experiment, "add_image"):
                experiment.add_image(key, image, step, dataformats="HWC")  # type: ignore[union-attr]


def log_video(trainer: L.Trainer, key: str, path: Path) -> None:
    """Hand a film to each logger with ``log_video(key, videos, step)``, such as WandbLogger; as :func:`log_image`."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_video"):
            with warning_instead(f"{type(logger).__name__}: film {key!r}"):
                logger.log_video(key, [str(path)], step=logged_step(trainer))  # type: ignore[attr-defined]


def log_histogram(trainer: L.Trainer, key: str, counts: np.ndarray, step: int) -> None:
    """Hand counts [B] of equal parts of [0, 1] to each logger that takes histograms; as :func:`log_image`.

    Those are WandbLogger, and loggers whose ``experiment`` has TensorBoard's ``add_histogram_raw``.
    """
    edges = np.linspace(0, 1, len(counts) + 1)
    for logger in trainer.loggers:
        with warning_instead(f"{type(logger).__name__}: histogram {key!r}"):
            if isinstance(logger, WandbLogger):
                from wandb import Histogram  # the logger's own package

                logger.experiment.log({key: Histogram(np_histogram=(counts, edges)), "trainer/global_step": step})
            elif (add := getattr(getattr(logger, "experiment", None), "add_histogram_raw", None)) is not None:
                middles = (edges[:-1] + edges[1:]) / 2
                sums = float((counts * middles).sum()), float((counts * middles**2).sum())
                add(key, 0.0, 1.0, float(counts.sum()), *sums, edges[1:].tolist(), counts.tolist(), step)


@contextmanager
def warning_instead(what: str) -> Iterator[None]:
    """Turn an exception into a warning: a lost picture must not end a training."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} is lost, the run goes on: {type(error).__name__}: {error}")
