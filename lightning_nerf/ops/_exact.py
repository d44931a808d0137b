"""Lists of exactly as many samples as there are, without an idle device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SPARSE = 4  # so many times as long as what it holds, and a list is copied to let go of the rest


def write_exactly(
    offsets: Tensor, kept: Tensor, write: Callable[[int], tuple[Tensor, ...]], expected: int | None = None
) -> tuple[int, bool, tuple[Tensor, ...]]:
    """How many samples R rays have, whether that is all rays' samples, and the lists that ``write`` makes of so many.

    The host has to read the number. While it waits and then asks for memory, a device has nothing to do, for as long as a
    kernel takes; so on CUDA, given a guess, lists of that length are written before the number arrives and cut to length.

    Args:
        offsets: [R + 1] int32, as :func:`~lightning_nerf.ops.pack.pack` gives them.
        kept: [R] bool, likewise.
        write: from a length to lists of that length; cleared behind ``offsets[-1]``.
        expected: how many samples there may be; None: no idea. Where there are more, they are written once more.
    """
    if len(kept) == 0:
        return 0, True, write(0)
    count = torch.cat([offsets[-1:], kept[-1:]])  # from the first ray that doesn't fit on, none is kept
    if expected is None or not offsets.is_cuda:
        total, complete = count.tolist()
        return total, bool(complete), write(total)
    on_host = count.to("cpu", non_blocking=True)
    arrived = torch.cuda.current_stream(offsets.device).record_event()
    lists: tuple[Any, ...] = write(expected)
    arrived.synchronize()
    total, complete = on_host.tolist()
    if total > expected:
        lists = write(total)
    else:
        lists = tuple(t[:total].clone() if _SPARSE * total < expected else t[:total] for t in lists)
    return total, bool(complete), lists
