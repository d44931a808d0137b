"""Which pairs of pictures are matched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lightning_nerf.process.sfm import Pair

FEW = 100  # photos of which every two are matched
_OVERLAP = 10  # neighbors on each side
_KEY_FRAMES = 40  # of which every two are matched


def choose_matcher(matcher: str, n: int, is_video: bool) -> str:
    """``exhaustive`` or ``sequential`` for ``auto``; any other as it is."""
    if matcher != "auto":
        return matcher
    return "sequential" if is_video or n > FEW else "exhaustive"


def choose_pairs(matcher: str, names: Sequence[str]) -> list[Pair]:
    """The pairs to match, neighbors of one picture together.

    ``exhaustive``: every two. ``sequential``, for pictures in the order in which they were taken: each with the next 10 and
    with those 16, 32, 64, ... further on; the last with the first, as a walk around an object ends where it began; and
    every two of 40 pictures that are evenly spaced, so that places seen twice are found.
    """
    n = len(names)
    pairs = set(_sequential(n)) if matcher == "sequential" else {(i, j) for j in range(n) for i in range(j)}
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def _sequential(n: int) -> Iterator[tuple[int, int]]:
    steps = [*range(1, _OVERLAP + 1), *(2**k for k in range(4, 32) if 2**k < n)]
    for i in range(n):
        for step in steps:
            if i + step < n:
                yield i, i + step
            elif step <= _OVERLAP and n > 2 * _OVERLAP:
                yield i + step - n, i
    keys = range(0, n, max(1, math.ceil(n / _KEY_FRAMES)))
    yield from ((i, j) for j in keys for i in keys if i < j)
