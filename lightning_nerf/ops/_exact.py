"""Lists of exactly as many samples as there are, with as short a wait for their number as can be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SPARSE = 4  # so many times as long as what it holds, and a list is copied to let go of the rest


def write_exactly(
    offsets: Tensor,
    kept: Tensor | None,
    write: Callable[[int], tuple[Tensor, ...]],
    expected: int | None = None,
    check: Callable[[int, bool], None] = lambda total, complete: None,
) -> tuple[int, bool, tuple[Tensor, ...]]:
    """How many samples R rays have, whether that is all rays' samples, and the lists that ``write`` makes of so many.

    The host has to read the number. While it waits and then asks for memory, a device has nothing to do, for as long as a
    kernel takes; so on CUDA, given a guess, lists of that length are written before the number arrives and cut to length.

    Args:
        offsets: [R + 1] int32, as :func:`~lightning_nerf.ops.pack.pack` gives them.
        kept: [R] bool, likewise; None: all.
        write: from a length to lists of that length; cleared behind ``offsets[-1]``.
        expected: how many samples there may be; None: no idea. Where there are more, they are written once more.
        check: told the number, and whether it is all rays', before memory for so many is asked for; may raise.
    """
    if len(offsets) == 1:
        return 0, True, write(0)
    # From the first ray that doesn't fit on, none is kept.
    count = offsets[-1:] if kept is None else torch.cat([offsets[-1:], kept[-1:]])
    lists = None
    # Where torch looks out for waits (as a CUDA graph's warm-up does), wait where it sees it.
    if offsets.is_cuda and torch.cuda.get_sync_debug_mode() == 0:
        count = count.to("cpu", non_blocking=True)  # pinned memory, a tenth of a millisecond sooner than other
        arrived = torch.cuda.current_stream(offsets.device).record_event()
        lists = None if expected is None else write(expected)
        arrived.synchronize()
    total, *complete = count.tolist()
    check(total, all(complete))
    if lists is None or expected is None or total > expected:
        lists = write(total)
    else:
        lists = tuple(t[:total].clone() if _SPARSE * total < expected else t[:total] for t in lists)
    return total, all(complete), lists
