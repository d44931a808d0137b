"""A scene that moves and needs no download: rendered once, kept in a cache folder in the D-NeRF format."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch

from lightning_nerf.cameras.poses import look_at
from lightning_nerf.checks import check_integer
from lightning_nerf.data.shapes import Triple
from lightning_nerf.data.sources.synthetic import ELEVATIONS, RADIUS, TURNS, SyntheticSource, View

_PLASTIC = 1.324717957244746  # x^3 = x + 1; its powers spread points over a square as the golden ratio does on a line
_WITHIN = {"val": 0.25, "test": 0.5}  # where the times of a split lie between two training times


class SyntheticDynamicSource(SyntheticSource):
    """Solids that travel, turn and change their shapes on a table, ray-traced (``moving_solids.py``), at times 0 to 1.

    Each view has a camera and a time of its own, as in D-NeRF. Training times are spread evenly from 0 to 1. Test times lie
    halfway between two neighbors of them and validation times a quarter of the way, so no split has a time of another.
    Cameras are spread over the zone of :class:`SyntheticSource`, evenly at all times.

    The first use renders the pictures (95 views of 160 x 160 pixels in about 9 s on one core) into
    ``<cache_dir>/synthetic_dynamic-…``, as :class:`SyntheticSource` does.

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train: training views, 2 or more.
        n_test, n_val: views of the other splits. More than ``n_train - 1`` share times among themselves.
        seed: where each solid begins, and the colors.
        cache_dir: default ``$XDG_CACHE_HOME/lightning-nerf``, or ``~/.cache/lightning-nerf``.
    """

    kind: ClassVar[str] = "synthetic_dynamic"
    version: ClassVar[int] = 1  # of the pictures: whatever changes them must change it
    aabb: ClassVar[tuple[Triple, Triple]] = ((-1.12, -1.12, -0.75), (1.12, 1.12, 0.9))
    needs_times: ClassVar[bool] = True

    def __init__(
        self,
        resolution: int = 160,
        n_train: int = 80,
        n_test: int = 10,
        n_val: int = 5,
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_integer("n_train", n_train, 2, 10_000)
        super().__init__(resolution, n_train, n_test, n_val, seed, cache_dir)

    def views(self, split: str) -> Iterator[View]:
        """Cameras and times of a split, in the order of time."""
        n, gaps = self.counts[split], self.counts["train"] - 1
        low, high = (math.sin(math.radians(e)) for e in ELEVATIONS)
        i = torch.arange(n, dtype=torch.float64)
        azimuth = 2 * math.pi * (TURNS[split] + i / _PLASTIC)
        height = low + (high - low) * ((0.5 + i / _PLASTIC**2) % 1)
        level = (1 - height**2).sqrt()
        poses = look_at(RADIUS * torch.stack([level * azimuth.cos(), level * azimuth.sin(), height], -1)).float().numpy()
        for j, c2w in enumerate(poses):
            place = j if split == "train" else (2 * j + 1) * gaps // (2 * n) + _WITHIN[split]
            yield View(c2w, place / gaps)
