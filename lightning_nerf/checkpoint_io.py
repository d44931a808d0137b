"""Checkpoints that are whole or not there, and the reading of them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_nerf.checks import BadArgument
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

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As :func:`read_checkpoint`; tensors come on the CPU unless ``map_location`` says otherwise."""
        return read_checkpoint(path, map_location, weights_only)


def read_checkpoint(
    path: str | Path | IO[bytes], map_location: Any = None, weights_only: bool | None = None
) -> dict[str, Any]:
    """What a checkpoint holds: of a file, local or remote, or of an open one, which is left where it was.

    Only tensors and plain values are read, no code that a file brings, unless ``weights_only`` is False. ``map_location``
    is as of :func:`torch.load`; None: the CPU where torch sees no GPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, no checkpoint, or holds what is not read; names the file.
    """
    if map_location is None and not torch.cuda.is_available():
        map_location = "cpu"
    weights_only = weights_only is not False
    try:
        if isinstance(path, (str, os.PathLike)):
            content = TorchCheckpointIO().load_checkpoint(path, map_location=map_location, weights_only=weights_only)
        else:
            start = path.tell()
            content = torch.load(path, map_location=map_location, weights_only=weights_only)
            path.seek(start)
    except FileNotFoundError:
        raise
    except Exception as error:  # of many kinds, from wherever a broken file leads the reader
        reason = (isinstance(error, pickle.UnpicklingError) and error.__context__) or error  # torch wraps it in advice
        why = f"{type(reason).__name__}: {reason}".splitlines()[0]
        raise BadArgument(f"{path} cannot be read as a checkpoint ({why})") from error
    if not isinstance(content, dict):
        raise BadArgument(f"{path} cannot be read as a checkpoint (it holds a {type(content).__name__})")
    return content
