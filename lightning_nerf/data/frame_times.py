"""The times of a file's frames: which are refused, and keys that may have been meant for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice, pairwise
from statistics import median
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import shorten, shown

_COARSEST = 1e-3  # of the range of times: the largest step of float32 there
_LARGEST = float(np.finfo(np.float32).max)
_KEYS = 100  # of an object that are looked at: a limit for files that strangers wrote
_ALIKE = 0.7
_FAR, _JUMP = 0.5, 10.0  # of all times' range, and of the median gap: a wider gap is said


def near_miss(whose: str, entry: object, key: str) -> str:
    """A hint such as "; frame 0 has 'tiem'" where an object that lacks ``key`` has one like it, or an empty string."""
    if not isinstance(entry, dict) or entry.get(key) is not None:
        return ""
    for other in islice(entry, _KEYS):
        name = other.casefold()
        is_part = bool(name) and (key in name or key.startswith(name))
        if other != key and (is_part or SequenceMatcher(None, key, name[: 2 * len(key)]).ratio() >= _ALIKE):
            return f"; {whose} has {shorten(other)}"
    return ""


def check_times(where: str, entries: Sequence[Mapping[str, Any]], needs_times: bool) -> None:
    """Refuse a frame without a time where others have one, or where all need one: no time is ever made up.

    A file that needs times is warned of where some of them look as if they were of another unit.

    Args:
        where: the file, for errors.
        entries: its frames; a time that is there is a number.
        needs_times: every frame must have a ``time``.
    """
    untimed = [i for i, entry in enumerate(entries) if entry.get("time") is None]
    if not untimed:
        times = [entry["time"] for entry in entries]
        _check_range(where, times, needs_times)
        if needs_times:
            _warn_of_a_jump(where, times)
    if not untimed or (len(untimed) == len(entries) and not needs_times):
        return
    first = entries[untimed[0]]
    name = first.get("file_path")
    missing = f"frame {untimed[0]}" + ("" if name is None else f" ({shown(name)})")
    if len(untimed) > 1:
        missing += f" and {len(untimed) - 1} more of {len(entries)} frames"
    expected = "in every frame" if needs_times else "in all frames or in none"
    other = "read a scene that stands still with BlenderData" if needs_times else "remove it from all"
    hint = near_miss(f"frame {untimed[0]}", first, "time")
    raise BadArgument(
        f"{where}: expected 'time' {expected}, got none in {missing}{hint}; give each the moment when its picture was "
        f"taken, or {other}"
    )


def _check_range(where: str, times: Sequence[float], needs_times: bool) -> None:
    """Refuse times that float32 cannot tell apart, as those of a clock that counts seconds since 1970."""
    first, last = min(times), max(times)
    step, span = float(np.spacing(np.float32(max(abs(first), abs(last))))), float(last) - float(first)
    if span <= _LARGEST and (first == last or step <= _COARSEST * span):
        return
    message = (
        f"{where}: 'time' goes from {first!r} to {last!r}, but float32, in which times are kept, has steps of {step:.3g} "
        "there; subtract the first time from all, or scale them"
    )
    if needs_times:
        raise BadArgument(message)
    rank_zero_warn(message)


def _warn_of_a_jump(where: str, times: Sequence[float]) -> None:
    """Warn of frames whose times may be of another unit: as far from the others as all of these are from each other."""
    moments = sorted(set(times))
    gaps = [after - before for before, after in pairwise(moments)]
    if not gaps:
        return
    widest = max(gaps)
    if widest <= _FAR * (moments[-1] - moments[0]) or widest <= _JUMP * median(gaps):
        return
    i = gaps.index(widest)
    sides = [[j for j, time in enumerate(times) if (time <= moments[i]) == below] for below in (True, False)]
    few = min(sides, key=len)
    frames = f"frame {few[0]}" + (f" and {len(few) - 1} more" if len(few) > 1 else "")
    rank_zero_warn(
        f"{where}: no frame has a 'time' between {moments[i]:g} and {moments[i + 1]:g}, "
        f"{widest / median(gaps):.3g} times the usual distance between two; is the time of {frames}, "
        f"{times[few[0]]:g}, in another unit than the others?"
    )
