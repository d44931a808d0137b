"""Pictures that do not fit in memory: decoded once into a file of pixels, which is mapped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.images import picture_kind, read_pictures
from lightning_nerf.files import whole_file
from lightning_nerf.ops.memory import SMALL, available_bytes

SHARE = 0.75  # of the free memory that pictures may take while they are read
_AT_ONCE = 16  # pictures decoded before they are written
_folder: ContextVar[Path | None] = ContextVar("picture_cache", default=None)


@contextmanager
def pictures_in(folder: Path | None) -> Iterator[None]:
    """Have :func:`open_pictures` map pictures from files in ``folder``; None: only those that do not fit in memory."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def default_folder() -> Path:
    """Where pictures that do not fit in memory are decoded to, if no folder was given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-nerf" / "pictures"


def open_pictures(paths: Sequence[Path], downscale: int = 1) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """As :func:`~lightning_nerf.data.images.read_pictures`; mapped from a file where memory does not hold them.

    The file is named after the pictures' paths, sizes and times of change: another run with the same pictures finds it.
    """
    folder = _folder.get()
    if folder is None and _fit_in_memory(paths, downscale):
        return read_pictures(paths, downscale)
    kinds = [picture_kind(path) for path in paths]
    sizes = [(kind.height, kind.width) for kind in kinds]
    if any(min(size) < downscale for size in sizes):
        return read_pictures(paths, downscale)  # which says which
    channels = 4 if any(kind.has_alpha for kind in kinds) else 3
    shapes = [(height // downscale, width // downscale, channels) for height, width in sizes]
    lengths = [height * width * channels for height, width, channels in shapes]
    file = (default_folder() if folder is None else folder) / f"pictures-{_fingerprint(paths, downscale)}.u8"
    if not file.is_file() or file.stat().st_size != sum(lengths):
        _decode(paths, downscale, shapes, file)
    pixels = torch.from_file(str(file), shared=True, size=sum(lengths), dtype=torch.uint8)
    return [part.view(shape) for part, shape in zip(pixels.split(lengths), shapes, strict=True)], sizes


def _fit_in_memory(paths: Sequence[Path], downscale: int) -> bool:
    """Twice: each picture, and then all of them in one tensor. What is small is not asked about."""
    if sum(path.stat().st_size for path in paths if path.is_file()) * 100 < SMALL:
        return True
    pixels = sum((kind.width // downscale) * (kind.height // downscale) for kind in map(picture_kind, paths))
    free = available_bytes(torch.device("cpu"))
    return free is None or 2 * 4 * pixels <= SHARE * free


def _decode(paths: Sequence[Path], downscale: int, shapes: Sequence[tuple[int, int, int]], file: Path) -> None:
    total = sum(height * width * channels for height, width, channels in shapes)
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if total > free:
        raise BadArgument(
            f"picture_cache: {len(paths)} pictures need {total / 2**30:.3g} GiB in {file.parent}, which has "
            f"{free / 2**30:.3g} GiB left; expected another folder, or a larger downscale"
        )
    rank_zero_info(f"Decoding {len(paths)} pictures, once, into {file} ({total / 2**30:.3g} GiB)")
    with whole_file(file) as out:
        for first in range(0, len(paths), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            pictures, _ = read_pictures(paths[part], downscale)
            for path, picture, shape in zip(paths[part], pictures, shapes[part], strict=True):
                if picture.shape[-1] < shape[-1]:
                    picture = torch.nn.functional.pad(picture, (0, 1), value=255)
                if picture.shape != shape:
                    raise BadArgument(f"{path}: changed while it was read")
                out.write(picture.numpy().tobytes())


def _fingerprint(paths: Sequence[Path], downscale: int) -> str:
    """Of what decides the pixels."""
    described = [f"{path.resolve()}\0{(stat := path.stat()).st_size}\0{stat.st_mtime_ns}" for path in paths]
    return hashlib.sha256("\n".join([str(downscale), *described]).encode(errors="surrogateescape")).hexdigest()[:16]
