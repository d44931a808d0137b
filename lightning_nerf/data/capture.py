"""The data module of a capture: a folder of photos with cameras, of whatever tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import check_tensor
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.sources.found import FoundSource
from lightning_nerf.scene_box import SceneBox, check_box


class CaptureData(NeRFDataModule):
    """A :class:`NeRFDataModule` of a :class:`~lightning_nerf.data.sources.FoundSource`: it finds out what a folder is.

    The scene is in units of its own, in which z is up and the cameras lie within 1 of the origin. ``Scene.to_world`` [4, 4]
    takes positions back to the units of the capture's files. It is in the checkpoint as the data module's state, and a
    resumed fit keeps it.

    >>> from lightning_nerf import CaptureData
    >>> CaptureData("path/to/fox").scene_name
    'fox'

    Args:
        root: the capture's folder.
        format: "auto", or "transforms", "colmap" or "llff" to take that one.
        test_every: where neither files nor lists say what is tested, every k-th picture by name is.
        holdout_every: validate on training views 0, k, 2k, ..., and do not train on them.
        downscale: shrink pictures by this integer factor; COLMAP's and LLFF's from ``images_N`` where there is one.
        images_folder: the folder of COLMAP's and LLFF's pictures. None: ``images_N`` for the ``downscale``, or ``images``.
        n_train: at most this many training views, evenly spaced. None: all.
        n_val: the same for validation views.
        n_test: the same for test views.
        normalize: read the scene in units of its own; False: in those of the files.
        aabb: the box that holds the scene, in the scene's units, two corners. None: [-1, 1]^3.
        near: where rays begin, in the scene's units, of views that do not say. None: in proportion to the box.
        far: where rays end. None: in proportion to the box.
        background: "white", "black" or "random", see :class:`NeRFDataModule`.
        eval_background: "white" or "black", see :class:`NeRFDataModule`.
        contraction: "none", "l2" or "linf", see :class:`NeRFDataModule`; or "ndc" for a forward-facing capture of LLFF or
            COLMAP, which is then turned: the cameras look along y from near the origin, and content begins at y = 1.
        device_budget: GiB of the device's memory for pictures, see :class:`NeRFDataModule`.
        picture_cache: where pictures are decoded to and mapped from, see :class:`NeRFDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        format: str = "auto",
        test_every: int = 8,
        holdout_every: int | None = None,
        downscale: int = 1,
        images_folder: str | None = None,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        normalize: bool = True,
        aabb: Sequence[Sequence[float]] | None = None,
        near: float | None = None,
        far: float | None = None,
        background: str = "random",
        eval_background: str | None = None,
        contraction: str = "l2",
        device_budget: float | None = None,
        picture_cache: str | Path | None = None,
    ) -> None:
        self._found = FoundSource(
            root,
            format,
            test_every,
            holdout_every,
            downscale,
            images_folder,
            n_train,
            n_val,
            n_test,
            normalize,
            contraction == "ndc",
        )
        self._derives_box = aabb is None
        super().__init__(
            self._found, aabb, near, far, background, eval_background, contraction, device_budget, picture_cache
        )

    def state_dict(self) -> dict[str, Tensor]:
        """``to_world`` [4, 4] float64; empty with ``normalize=False``. With contraction "ndc" also the box, ``aabb``."""
        to_world = self.to_world()
        if to_world is None:
            return {}
        return {"to_world": to_world, **({"aabb": self.scene_box.aabb} if self.contraction == "ndc" else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a checkpoint's ``to_world``; views that were read with another are read again when next asked for.

        No file is looked at, so ``to_world`` is known where the capture is not.
        """
        to_world = state_dict.get("to_world")
        if to_world is None:
            return
        check_tensor("to_world", to_world, (4, 4), torch.float64)
        self._found.use_transform(to_world)
        if self.contraction == "ndc" and self._derives_box and (aabb := state_dict.get("aabb")) is not None:
            self._box = SceneBox(aabb.cpu(), "ndc")
            check_box("aabb", self._box)
        used = [scene.to_world for scene in self._scenes.values() if scene.to_world is not None]
        if any(not torch.equal(each, to_world.cpu().float()) for each in used):
            self._scenes.clear()
            self._on_device.clear()
            self.depths.forget()

    def to_world(self) -> Tensor | None:
        """[4, 4] float64, from the scene's units to those of the capture's files; None with ``normalize=False``."""
        return self._found.to_world()
