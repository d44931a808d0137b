"""The data module of a procedural scene that moves and needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lightning_nerf.data.sources.dynamic import SyntheticDynamicSource
from lightning_nerf.data.sources.synthetic import SyntheticSource
from lightning_nerf.data.synthetic import SyntheticScene


class SyntheticDynamicScene(SyntheticScene):
    """A :class:`SyntheticScene` of a :class:`~lightning_nerf.data.sources.SyntheticDynamicSource`: solids that move.

    No split has a time of another: scores are those of moments that were not trained on.

    >>> from lightning_nerf import SyntheticDynamicScene
    >>> SyntheticDynamicScene(resolution=16, n_train=2).scene_name
    'synthetic_dynamic'

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train: training views, 2 or more, at times spread evenly from 0 to 1.
        n_test: test views, each at a time halfway between two training times.
        n_val: validation views, each at a time a quarter of the way between two training times.
        seed: where each solid begins, and the colors.
        cache_dir: where the rendered pictures are kept; default ``$XDG_CACHE_HOME/lightning-nerf``, or
            ``~/.cache/lightning-nerf``.
        aabb: default the tightest round numbers, [-1.12, 1.12] in x and y, [-0.75, 0.9] in z.
        near: where rays begin; cameras are 4 units from the origin, the scene within 1.34 of it.
        far: where rays end.
        background: "white", "black" or "random", see :class:`NeRFDataModule`.
        eval_background: "white" or "black", see :class:`NeRFDataModule`.
        contraction: "none", "l2" or "linf", see :class:`NeRFDataModule`.
        device_budget: GiB of the device's memory for pictures, see :class:`NeRFDataModule`.
        picture_cache: where pictures are decoded to and mapped from, see :class:`NeRFDataModule`.
    """

    source_class: ClassVar[type[SyntheticSource]] = SyntheticDynamicSource

    def __init__(
        self,
        resolution: int = 160,
        n_train: int = 80,
        n_test: int = 10,
        n_val: int = 5,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        aabb: Sequence[Sequence[float]] | None = None,
        near: float = 2.0,
        far: float = 6.0,
        background: str = "white",
        eval_background: str | None = None,
        contraction: str = "none",
        device_budget: float | None = None,
        picture_cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            resolution,
            n_train,
            n_test,
            n_val,
            seed,
            cache_dir,
            aabb,
            near,
            far,
            background,
            eval_background,
            contraction,
            device_budget,
            picture_cache,
        )
