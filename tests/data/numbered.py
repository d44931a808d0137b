"""Pictures whose pixels are known by their colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras
from lightning_nerf.cameras.poses import look_at
from lightning_nerf.data import Images, NeRFDataModule, Scene, Source
from lightning_nerf.types import RayBatch
from tests.ops.harness import rand

NEAR, FAR = 0.5, 7.0
ONE_SIZE = ((5, 4),) * 3  # width and height of each view
MIXED = ((5, 4), (2, 7), (9, 3))
BOX = [[-1, -1, -1], [1, 1, 1]]
COUNTS = {"train": 3, "val": 2, "test": 4}


def numbered_scene(
    sizes: Sequence[tuple[int, int]] = ONE_SIZE, *, alpha: bool = True, masked: Tensor | None = None, bounded: bool = True
) -> Scene:
    """Pixel i of all P <= 127 has the color (i, 2 i, 255 - i) / 255 and alpha i / 255.

    ``masked``: [P] bool, pixels that are never drawn.
    """
    v, counts = len(sizes), [w * h for w, h in sizes]
    i = torch.arange(sum(counts), dtype=torch.uint8)
    colors = torch.stack([i, 2 * i, 255 - i, i][: 4 if alpha else 3], -1)
    pictures = [part.view(h, w, -1) for part, (w, h) in zip(colors.split(counts), sizes, strict=True)]
    masks = None
    if masked is not None:
        masks = [part.view(h, w) for part, (w, h) in zip((~masked).split(counts), sizes, strict=True)]
    size = torch.tensor(sizes, dtype=torch.int64).view(v, 2)
    cameras = Cameras(
        look_at(rand(v, 3, seed=1, low=-1) * torch.tensor([3.0, 3.0, 1.0])),
        torch.cat([torch.tensor([6.0, 7.0]).expand(v, 2), size / 2], -1) + rand(v, 4, seed=2),
        size,
        times=torch.linspace(0, 1, v),
    )
    cameras = cameras.bounded(NEAR, FAR) if bounded else cameras
    return Scene(cameras, Images.from_pictures(pictures, masks), [f"r_{i}" for i in range(v)])


def drawn_pixels(batch: RayBatch) -> Tensor:
    """The number of each ray's pixel."""
    return (batch.rgb[:, 0] * 255).round().long()


class NumberedSource(Source):
    """So many numbered pictures in each split, without bounds; remembers what was read."""

    def __init__(self, counts: dict[str, int] = COUNTS) -> None:
        self.counts = counts
        self.log: list[str] = []

    def read(self, split: str) -> Scene:
        self.log.append(split)
        n = self.counts[split]
        return numbered_scene(((5, 4),) * n, bounded=False)._replace(names=[f"{split}_{i}" for i in range(n)])


class NumberedData(NeRFDataModule):
    """The data module of a :class:`NumberedSource`."""

    source: NumberedSource

    def __init__(self, counts: dict[str, int] = COUNTS, **kwargs: Any) -> None:
        super().__init__(NumberedSource(counts), **{"aabb": BOX, "near": 0.5, "far": 4.0, **kwargs})

    @property
    def log(self) -> list[str]:
        """The splits that were read."""
        return self.source.log
