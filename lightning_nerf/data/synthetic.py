"""The data module of a procedural scene that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.sources.synthetic import SyntheticSource
from lightning_nerf.recorded import Plain


class SyntheticScene(NeRFDataModule):
    """A :class:`NeRFDataModule` of a :class:`~lightning_nerf.data.sources.SyntheticSource`: solids on transparent ground.

    >>> from lightning_nerf import SyntheticScene
    >>> SyntheticScene(resolution=16, n_train=2).scene_name
    'synthetic'

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train: training views.
        n_test: test views.
        n_val: validation views.
        seed: which solid stands where, and the colors.
        cache_dir: where the rendered pictures are kept; default ``$XDG_CACHE_HOME/lightning-nerf``, or
            ``~/.cache/lightning-nerf``.
        aabb: default the tightest round numbers, [-1.12, 1.12] in x and y, [-0.75, 1.01] in z.
        near: where rays begin; cameras are 4 units from the origin, the scene within 1.34 of it.
        far: where rays end.
        background: "white", "black" or "random", see :class:`NeRFDataModule`.
        eval_background: "white" or "black", see :class:`NeRFDataModule`.
        contraction: "none", "l2" or "linf", see :class:`NeRFDataModule`.
        device_budget: GiB of the device's memory for pictures, see :class:`NeRFDataModule`.
        picture_cache: where pictures are decoded to and mapped from, see :class:`NeRFDataModule`.
    """

    source_class: ClassVar[type[SyntheticSource]] = SyntheticSource

    def __init__(
        self,
        resolution: int = 200,
        n_train: int = 50,
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
        source = self.source_class(resolution, n_train, n_test, n_val, seed, cache_dir)
        super().__init__(
            source,
            source.aabb if aabb is None else aabb,
            near,
            far,
            background,
            eval_background,
            contraction,
            device_budget,
            picture_cache,
        )

    @classmethod
    def arguments_of_file(cls, arguments: Plain) -> Plain:
        """As of :class:`~lightning_nerf.data.sources.SyntheticSource`: a recorded ``cache_dir`` is never written to."""
        kept = super().arguments_of_file(arguments)
        if "cache_dir" in arguments and cls.source_class.is_cached(arguments):
            kept["cache_dir"] = arguments["cache_dir"]
        return kept
