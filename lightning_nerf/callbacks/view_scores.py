"""Scores of views by name: those of all processes together, and their means over parts of the time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import NamedTuple

import lightning as L
import torch

from lightning_nerf.data.scene import Scene
from lightning_nerf.fields.base import RadianceField

TIME_BINS = 5


class TimeBin(NamedTuple):
    """The views of one part of the time and their mean score."""

    name: str  # of the metric, behind the split
    first: float
    last: float
    n_views: int
    psnr: float | None  # None: no view


def psnr_per_time(scene: Scene, scores: Mapping[str, float], field: RadianceField | None = None) -> list[TimeBin]:
    """The mean PSNR over each fifth of the time between the first training view and the last; a static split has none.

    Args:
        scene: all views of the split, so that the parts are the same where only some are scored.
        scores: PSNR of views by name.
        field: what was trained. Where it knows no range of times, the parts are those between the split's own first view
            and its last.

    Returns:
        ``psnr_time_0`` to ``psnr_time_4``. A view between two parts counts in the later one, a view before the first of
        them in the first and one behind the last in the last.
    """
    times = scene.cameras.times
    if times is None or len(times) == 0:
        return []
    first, last = float(times.min()), float(times.max())
    if field is not None and field.knows_times:
        first, last = field.time_range.tolist()
    share = (times.double() - first) / max(last - first, torch.finfo(torch.float32).tiny)
    parts = (TIME_BINS * share.clamp(0, 1) + 1e-6).long().clamp(max=TIME_BINS - 1).tolist()  # times are rounded to float32
    found: list[list[float]] = [[] for _ in range(TIME_BINS)]
    for name, part in zip(scene.names, parts, strict=True):
        if name in scores:
            found[part].append(scores[name])
    edges = [first + (last - first) * i / TIME_BINS for i in range(TIME_BINS)] + [last]
    return [
        TimeBin(f"psnr_time_{i}", edges[i], edges[i + 1], len(some), sum(some) / len(some) if some else None)
        for i, some in enumerate(found)
    ]


def scores_of_all_ranks(scores: dict[str, float], trainer: L.Trainer) -> dict[str, float]:
    """In the order of the views, which ranks take in turn; one that two ranks have scored is there once.

    Call it on every rank.
    """
    if trainer.world_size == 1:
        return scores
    everybodys: list[dict[str, float]] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(everybodys, scores)
    turns = zip_longest(*(theirs.items() for theirs in everybodys))
    return dict(item for turn in turns for item in turn if item is not None)
