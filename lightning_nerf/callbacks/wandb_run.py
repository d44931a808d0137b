"""Which W&B run a checkpoint belongs to."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf.checkpoint_io import read_checkpoint
from lightning_nerf.recorded import Plain

WANDB_RUN_KEY = "wandb_run_id"  # in a checkpoint
_ID = re.compile(r"\w[\w.-]{0,127}")  # it becomes the name of a folder, so nothing that leads elsewhere


class WandbRun(L.Callback):
    """Save the id of the W&B run in each checkpoint, and warn where a fit goes on from another run's.

    Every :class:`~lightning_nerf.modules.NeRFModule` brings it. Without a WandbLogger it does nothing.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """Save the id."""
        if (run := _run(trainer)) is not None:
            checkpoint[WANDB_RUN_KEY] = run

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """Compare the ids."""
        former, run = _id_in(checkpoint), _run(trainer)
        if None not in (former, run) and former != run and trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(
                f"the checkpoint was written by the W&B run {former!r}, and this fit logs to {run!r}; "
                "WandbLogger(id=lightning_nerf.callbacks.loggers.wandb_run_id(path)) would go on in the former"
            )


def wandb_run_id(checkpoint: str | Path, weights_only: bool | None = None) -> str | None:
    """The id of the W&B run that wrote a checkpoint, for ``WandbLogger(id=...)``: logging then goes on in that run.

    Lightning begins W&B runs before it opens the checkpoint of ``fit(ckpt_path=...)``, so this has to be asked first.
    None where there is no such file, or no W&B run wrote it.

    Raises:
        ValueError: the file cannot be read; with ``weights_only=False`` it may hold any Python objects.
    """
    try:
        return _id_in(read_checkpoint(checkpoint, "cpu", weights_only))
    except FileNotFoundError:
        return None


def _run(trainer: L.Trainer) -> str | None:
    """The id of the W&B run that a Trainer logs to, if there is one."""
    return next((logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


def _id_in(checkpoint: Plain) -> str | None:
    run = checkpoint.get(WANDB_RUN_KEY)
    return run if isinstance(run, str) and _ID.fullmatch(run) else None
