"""The times of ``lightning-nerf render --times``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.modules.times import times_outside

EXPECTED = "expected a time (0.5), two ends (0:1), there and back (0:1:0), or a time for each frame (0 0.3 0.7)"
TimeRange = tuple[float, float]  # of the training views


class Times(NamedTuple):
    """What ``--times`` says: one moment, a way along the time, or a time for each frame."""

    values: tuple[float, ...]
    is_way: bool = False  # values are the ends: two, or three of which the last is the first

    @property
    def moves(self) -> bool:
        """Whether frames of one camera would differ."""
        return self.is_way or len(self.values) > 1

    @property
    def n_frames(self) -> int | None:
        """How many frames they are for; None: any number."""
        return len(self.values) if self.moves and not self.is_way else None

    def of_frames(self, n: int) -> Tensor:
        """The time of each of n frames, [n] float32.

        A way from A to B is gone in even steps, both ends included. One there and back leaves out the last step: in a film
        that loops the first frame follows. An odd number of frames shows the far end twice, so that steps are even.
        """
        if self.n_frames not in (None, n):
            raise BadArgument(f"--times: expected {n} times, one for each frame, got {len(self.values)}")
        if not self.is_way:
            return torch.tensor(self.values, dtype=torch.float32).expand(n)
        first, last = self.values[:2]
        if len(self.values) == 2:
            return torch.linspace(first, last, n, dtype=torch.float64).float()
        i = torch.arange(n, dtype=torch.float64)
        share = torch.minimum(i, n - i) / max(1, n // 2)
        return (first + (last - first) * share).float()


def parse_times(words: Sequence[str]) -> Times:
    """What follows ``--times``.

    Raises:
        BadArgument: naming the word.
    """
    ways = [word for word in words if ":" in word]
    if not ways:
        return Times(tuple(_number(word) for word in words))
    if len(words) > 1:
        raise BadArgument(f"--times: expected {ways[0]} alone, got {len(words)} words")
    values = tuple(_number(part, words[0]) for part in words[0].split(":"))
    if len(values) == 3 and values[2] != values[0]:
        first, last = words[0].split(":")[:2]
        raise BadArgument(
            f"--times: expected {first}:{last}:{first}, there and back, got {words[0]}; "
            f"the step follows from --n_frames, as in --times {first}:{last} --n_frames 60"
        )
    if len(values) > 3:
        raise BadArgument(f"--times: {EXPECTED}, got {words[0]!r}")
    return Times(values, is_way=True)


def warn_outside(times: Tensor, trained: TimeRange | None, name: str) -> None:
    """Say once, on stderr, that some of the times lie outside of the training views'."""
    if trained is None or len(times) == 0:
        return
    first, last = trained
    outside = times_outside(times, trained)
    if bool(outside.any()):
        worst = float(times[outside][(times[outside] - (first + last) / 2).abs().argmax()])
        print(
            f"lightning-nerf render: the time {worst:g} lies outside of the training views' times, {first:g} to {last:g}; "
            f"no view has taught the model what is there ({int(outside.sum())} of {len(times)} frames of {name}, "
            f"whose times go from {float(times.min()):g} to {float(times.max()):g})",
            file=sys.stderr,
        )


def _number(word: str, whole: str | None = None) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not torch.tensor(value, dtype=torch.float32).isfinite():
        raise BadArgument(f"--times: {EXPECTED}, got {word if whole is None else whole!r}")
    return value


def option_like_time(args: Sequence[str]) -> str | None:
    """What is wrong where --times is followed by a word that argparse would take for an option, such as -1:1; or None."""
    for before, word in pairwise(args):
        if before == "--times" and re.match(r"-[\d.]", word) and not re.fullmatch(r"-\d+|-\d*\.\d+", word):
            return f"--times: {word} begins as an option does; write --times={word}"
    return None
