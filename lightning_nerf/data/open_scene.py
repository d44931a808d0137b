"""The data module of a procedural scene without a border that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lightning_nerf.data.sources.open_scene import SyntheticUnboundedSource
from lightning_nerf.data.sources.synthetic import SyntheticSource
from lightning_nerf.data.synthetic import SyntheticScene


class SyntheticUnboundedScene(SyntheticScene):
    """A :class:`SyntheticScene` of a :class:`~lightning_nerf.data.sources.SyntheticUnboundedSource`: solids in a landscape.

    >>> from lightning_nerf import SyntheticUnboundedScene
    >>> SyntheticUnboundedScene(resolution=16, n_train=2).contraction
    'l2'

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train: training views.
        n_test: test views.
        n_val: validation views.
        seed: which solid stands where, and the colors.
        cache_dir: where the rendered pictures are kept; default ``$XDG_CACHE_HOME/lightning-nerf``, or
            ``~/.cache/lightning-nerf``.
        aabb: default [-1.2, 1.2]^3, around the solids; all else lies in contracted space.
        near: where rays begin; cameras are 2.3 to 3.6 units from the z axis.
        far: where rays end, beyond the sky.
        background: "white", "black" or "random", see :class:`NeRFDataModule`; all pixels are covered.
        eval_background: "white" or "black", see :class:`NeRFDataModule`.
        contraction: "l2" or "linf"; with "none" only the box is seen, see :class:`NeRFDataModule`.
        device_budget: GiB of the device's memory for pictures, see :class:`NeRFDataModule`.
        picture_cache: where pictures are decoded to and mapped from, see :class:`NeRFDataModule`.
    """

    source_class: ClassVar[type[SyntheticSource]] = SyntheticUnboundedSource

    def __init__(
        self,
        resolution: int = 120,
        n_train: int = 70,
        n_test: int = 8,
        n_val: int = 4,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        aabb: Sequence[Sequence[float]] | None = None,
        near: float = 0.4,
        far: float = 100.0,
        background: str = "black",
        eval_background: str | None = None,
        contraction: str = "l2",
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
