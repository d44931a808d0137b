"""Checkpoints that are whole or not there, and the reading and removing of them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.migration.utils import migrate_checkpoint

from lightning_nerf.checkpoint_content import check_content, check_sections
from lightning_nerf.checks import BadArgument, BadFile, MissingFile
from lightning_nerf.files import whole_file
from lightning_nerf.recorded import Plain

_VERSION = "pytorch-lightning_version"  # its key in a checkpoint
_SECONDS = 60.0  # without a byte from a server
_ZIP = b"PK\x03\x04"  # what files of torch.save begin with


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its place, waits until the disk has it, and renames: a process that is killed, or a
    machine that loses power, leaves the checkpoint that was there before. Removes nothing but checkpoints of its own run.

    Lightning's own, which serves remote paths here, goes through the folder for temporary files, mostly another file
    system, and then copies. :class:`~lightning_nerf.modules.NeRFModule` uses this unless the Trainer was given a
    ``CheckpointIO``; other modules take it with ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    lightning_only = False
    """Whether :meth:`load_checkpoint` refuses what is no checkpoint of a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()
        self._folders: set[tuple[str, str]] = set()  # where it has written, and the ending

    def save_checkpoint(self, checkpoint: Plain, path: str | Path, storage_options: object = None) -> None:
        """Write ``checkpoint`` to ``path``; what an earlier write that was killed has left there is removed.

        Raises:
            OSError: the disk is full, or the folder is not writable; a former checkpoint is still there.
        """
        if storage_options is not None or is_url(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        place = _place(path)
        self._written.add(place)
        self._folders.add(_folder_and_ending(place))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> Plain:
        """As :func:`read_checkpoint`; tensors come on the CPU unless ``map_location`` says otherwise.

        What an older Lightning wrote is brought up to date, as the Trainer does it.
        """
        content = read_checkpoint(path, map_location, weights_only)
        if not self.lightning_only and _VERSION not in content:
            return content
        with _readable(path):
            check_sections(content)
            version = content.setdefault(_VERSION, "2.0.0")
            if not isinstance(version, str) or re.fullmatch(r"\d{1,4}(\.\w{1,9}){1,4}(\+[\w.]{1,40})?", version) is None:
                raise BadArgument(f"{_VERSION}: expected a version, got {version!r:.100}")
            return migrate_checkpoint(content)[0]

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that this object wrote, or that an earlier process of the same run did.

        The latter is a file that ``torch.save`` wrote, with the same ending and in the same folder as one that this object
        has written. A checkpoint's callbacks say what Lightning removes, and a stranger may have written them: anything
        else stays where it is, with a warning.
        """
        place = _place(path)
        own = place in self._written or _folder_and_ending(place) in self._folders
        if is_url(place):
            if own and ".." not in place.split("/"):
                super().remove_checkpoint(path)
                self._written.discard(place)
                return
        elif not os.path.lexists(place):
            return
        elif own and (os.path.islink(place) or _is_torch_file(place)):
            os.unlink(place)
            self._written.discard(place)
            return
        rank_zero_warn(f"{path} is not removed: it is no checkpoint of this run")


def read_checkpoint(path: str | Path | IO[bytes], map_location: Any = None, weights_only: bool | None = None) -> Plain:
    """The content of a checkpoint: of a file, local or remote, or of an open one, which is left where it was.

    Only tensors and plain values are read, no code that a file brings, unless ``weights_only`` is False. ``map_location``
    is as of :func:`torch.load`; None: the CPU where torch sees no GPU. ``http://`` and ``https://`` are fetched each time,
    other URLs are those of ``fsspec``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, no checkpoint, or holds what is not read; names the file.
    """
    if map_location is None and not torch.cuda.is_available():
        map_location = "cpu"
    weights_only = weights_only is not False
    with _readable(path):
        if not isinstance(path, (str, os.PathLike)):
            start = path.tell()
            content = torch.load(path, map_location=map_location, weights_only=weights_only)
            path.seek(start)
        elif str(path).startswith(("http://", "https://")):
            # Lightning would go through torch.hub, whose cache knows the last part of a URL only.
            with _fetched(str(path)) as file:
                content = torch.load(file, map_location=map_location, weights_only=weights_only)
        else:
            content = TorchCheckpointIO().load_checkpoint(path, map_location=map_location, weights_only=weights_only)
        if not isinstance(content, dict):
            raise BadArgument(f"it holds a {type(content).__name__}")
        if weights_only:
            check_content(content)
    return content


def is_url(path: object) -> bool:
    """Whether a path is one of ``fsspec``'s, such as ``https://…`` or ``simplecache::s3://…``."""
    return "://" in str(path) or "::" in str(path)


@contextmanager
def _readable(path: object) -> Iterator[None]:
    """Have an error of the block say that ``path`` cannot be read as a checkpoint, and why."""
    try:
        yield
    except BadFile:
        raise
    except FileNotFoundError as error:
        raise MissingFile(ENOENT, "no such checkpoint", str(path)) from error
    except Exception as error:  # of many kinds, from wherever a broken file leads the reader
        reason = (isinstance(error, pickle.UnpicklingError) and error.__context__) or error  # torch wraps it in advice
        kind = "" if isinstance(error, BadArgument) else f"{type(reason).__name__}: "
        why = (str(reason).splitlines() or [""])[0]
        raise BadArgument(f"{path} cannot be read as a checkpoint ({kind}{why:.300})") from error


@contextmanager
def _fetched(url: str) -> Iterator[IO[bytes]]:
    """What a URL of HTTP leads to, in a temporary file."""
    with tempfile.TemporaryFile() as file:
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                shutil.copyfileobj(response, file)
        except urllib.error.HTTPError as error:
            error.close()  # it is the server's answer, too
            kind = MissingFile if error.code in (404, 410) else BadFile
            raise kind(ENOENT, f"the server says {error.code} {error.reason}", url) from error
        except OSError as error:
            raise BadFile(error.errno, f"checkpoint cannot be fetched, {error}", url) from error
        file.seek(0)
        yield file


def _place(path: str | Path) -> str:
    """A path without links, ``..`` and the protocol of local files; what is remote as it is."""
    text = str(path)
    for protocol in ("file://", "local://"):
        text = text.removeprefix(protocol)
    if is_url(text):
        return text
    folder, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(folder), name)


def _folder_and_ending(place: str) -> tuple[str, str]:
    folder, _, name = place.replace(os.sep, "/").rpartition("/")
    return folder, os.path.splitext(name)[1]


def _is_torch_file(place: str) -> bool:
    if not os.path.isfile(place):
        return False
    with open(place, "rb") as file:
        return file.read(len(_ZIP)) == _ZIP
