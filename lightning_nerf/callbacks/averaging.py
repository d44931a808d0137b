"""Keeps state that is not a weight out of Lightning's weight averaging."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf import lightning_names


class UnaveragedBuffers(L.Callback):
    """Give the averaged copy of a module the buffers of the module, whenever Lightning's ``WeightAveraging`` uses the copy.

    Buffers hold what is no weight: the occupancy grid (bool), the key and the number of rays (integers), counters. Their
    average has no meaning, and a copy of them that is some steps old would replace them after a validation or a fit.
    :func:`keep_buffers` adds this callback where it is needed, before all others: it must act before ``WeightAveraging``.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before module and copy change places."""
        _copy_buffers(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the module takes over the copy."""
        _copy_buffers(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the copy is saved as ``state_dict``."""
        _copy_buffers(trainer, pl_module)


def keep_buffers(trainer: L.Trainer) -> None:
    """Have no ``WeightAveraging`` of this Trainer average buffers; call it before the callbacks' ``setup``."""
    given = lightning_names.callbacks(trainer)
    averaging = [callback for callback in given if lightning_names.is_weight_averaging(callback)]
    for callback in averaging:
        if lightning_names.averages_buffers(callback):
            rank_zero_info(
                f"{type(callback).__name__} averages weights only, as with use_buffers=False: buffers (the occupancy grid, "
                "keys, counters) have no average"
            )
            lightning_names.average_weights_only(callback)
    if averaging and not any(isinstance(callback, UnaveragedBuffers) for callback in given):
        # A new list: the Trainer may be in the middle of the old one.
        lightning_names.set_callbacks(trainer, [UnaveragedBuffers(), *given])


@torch.no_grad()
def _copy_buffers(trainer: L.Trainer, module: L.LightningModule) -> None:
    for callback in lightning_names.callbacks(trainer):
        copy = lightning_names.averaged_copy(callback) if lightning_names.is_weight_averaging(callback) else None
        if copy is not None:
            averaged = dict(copy.named_buffers())
            for name, buffer in module.named_buffers():
                averaged[name].copy_(buffer)
