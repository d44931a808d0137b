"""Checkpoints that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_nerf.files import whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its place, waits until the disk has it, and renames: a process that is killed, or a
    machine that loses power, leaves the checkpoint that was there before.

    Lightning's own, which serves remote paths here, goes through the folder for temporary files, mostly another file
    system, and then copies. :class:`~lightning_nerf.modules.NeRFModule` uses this unless the Trainer was given a
    ``CheckpointIO``; other modules take it with ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; what an earlier write that was killed has left there is removed.

        Raises:
            OSError: the disk is full, or the folder is not writable; a former checkpoint is still there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)
