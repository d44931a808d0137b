"""The data module of a scene in the NeRF-Synthetic ("Blender") format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.sources.blender import BlenderSource


class BlenderData(NeRFDataModule):
    """A :class:`NeRFDataModule` of a :class:`~lightning_nerf.data.sources.BlenderSource`.

    >>> from lightning_nerf import BlenderData
    >>> BlenderData("path/to/lego").scene_name
    'lego'

    Args:
        root: the scene's folder, with ``transforms_train.json`` and ``transforms_test.json``.
        train_split: which ``transforms_*.json`` the training views are read from.
        val_split: the same for validation; where it does not exist there is no validation, unless ``holdout_every`` is set.
        test_split: the same for test views, which are never trained on.
        holdout_every: validate on training views 0, k, 2k, … instead (to choose settings without a look at test views).
        downscale: shrink pictures by this integer factor, averaging areas.
        val_every: use validation views 0, k, 2k, …
        test_every: use test views 0, k, 2k, … ("every 8th").
        n_train: at most this many training views, evenly spaced over what is left after the above. None: all.
        n_val: the same for validation views.
        n_test: the same for test views.
        aabb: the box that holds the scene, two corners. None: [-1.5, 1.5]^3, or one derived from the cameras if they look
            elsewhere (said and saved).
        near: where rays begin, in world units; they are clipped to the box besides. None: in proportion to the box.
        far: where rays end. None: in proportion to the box.
        background: "white", "black" or "random", see :class:`NeRFDataModule`.
        eval_background: "white" or "black", see :class:`NeRFDataModule`.
        contraction: "none", "l2" or "linf", see :class:`NeRFDataModule`.
        device_budget: GiB of the device's memory for pictures, see :class:`NeRFDataModule`.
        picture_cache: where pictures are decoded to and mapped from, see :class:`NeRFDataModule`.
    """

    source_class: ClassVar[type[BlenderSource]] = BlenderSource

    def __init__(
        self,
        root: str | Path,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        holdout_every: int | None = None,
        downscale: int = 1,
        val_every: int = 1,
        test_every: int = 1,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        aabb: Sequence[Sequence[float]] | None = None,
        near: float | None = None,
        far: float | None = None,
        background: str = "white",
        eval_background: str | None = None,
        contraction: str = "none",
        device_budget: float | None = None,
        picture_cache: str | Path | None = None,
    ) -> None:
        source = self.source_class(
            root,
            train_split,
            val_split,
            test_split,
            holdout_every,
            downscale,
            val_every,
            test_every,
            n_train,
            n_val,
            n_test,
        )
        super().__init__(source, aabb, near, far, background, eval_background, contraction, device_budget, picture_cache)
