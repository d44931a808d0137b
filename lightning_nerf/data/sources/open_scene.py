"""A scene without a border that needs no download: rendered once, kept in a cache folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch

from lightning_nerf.cameras.poses import look_at
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.open_solids import open_solids
from lightning_nerf.data.shapes import Triple
from lightning_nerf.data.sources.synthetic import TURNS, SyntheticSource, View

_PLASTIC = 1.324717957244746  # x^3 = x + 1; its powers spread points over a square as the golden ratio does on a line
_RADII, _HEIGHTS = (2.3, 3.6), (-0.25, 1.5)  # of cameras, from the z axis and above the origin


class SyntheticUnboundedSource(SyntheticSource):
    """The solids of :class:`SyntheticSource`, with ground, hills, sky and 18 things from 5.5 to 30 units away, ray-traced.

    Cameras stand around the solids, between them and all else, and look inwards: every view shows the solids in front of a
    far background. All pixels are covered. See ``open_solids.py``.

    The first use renders the pictures (82 views of 120 x 120 pixels) into ``<cache_dir>/synthetic_unbounded-…``, as
    :class:`SyntheticSource` does.

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train, n_test, n_val: views per split; no split repeats a camera of another.
        seed: which solid stands where, and the colors.
        cache_dir: default ``$XDG_CACHE_HOME/lightning-nerf``, or ``~/.cache/lightning-nerf``.
    """

    kind: ClassVar[str] = "synthetic_unbounded"
    version: ClassVar[int] = 1  # of the pictures: whatever changes them must change it
    aabb: ClassVar[tuple[Triple, Triple]] = ((-1.2, -1.2, -1.2), (1.2, 1.2, 1.2))
    camera_angle_x: ClassVar[float] = 1.0

    def __init__(
        self,
        resolution: int = 120,
        n_train: int = 70,
        n_test: int = 8,
        n_val: int = 4,
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(resolution, n_train, n_test, n_val, seed, cache_dir)

    def traced(self, time: float | None) -> AnalyticScene:
        """The scene, for the ray tracer."""
        return AnalyticScene(self.seed, others=open_solids(self.seed))

    def views(self, split: str) -> Iterator[View]:
        """Cameras of a split."""
        i = torch.arange(self.counts[split], dtype=torch.float64) + 0.5
        azimuth = 2 * math.pi * (TURNS[split] + i / _PLASTIC)
        height = _HEIGHTS[0] + (_HEIGHTS[1] - _HEIGHTS[0]) * ((i / _PLASTIC**2) % 1)
        radius = _RADII[0] + (_RADII[1] - _RADII[0]) * ((i * 0.618034) % 1)
        for c2w in look_at(torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), height], -1)).float().numpy():
            yield View(c2w)
