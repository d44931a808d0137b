"""A source whose files leave scale, orientation and center to chance."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.data.captured_box import CAPTURE_BOX, CaptureFit, fit_capture, to_scene_units
from lightning_nerf.data.default_box import derive_box
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.source import Source
from lightning_nerf.scene_box import SceneBox


class CapturedCameras(NamedTuple):
    """What the units of a scene are derived from, in those of its files."""

    c2w: Tensor  # [V, 3, 4]
    intrinsics: Tensor  # [V, 4]
    sizes: Tensor  # [V, 2]: height, width
    points: Tensor | None = None  # [P, 3], on surfaces
    upright: Tensor | None = None  # [V, 3, 4]: c2w with the axes of upright pictures; None: c2w


class NormalizedSource(Source):
    """Reads views in the units of their files, and hands them out in units that fit the scene.

    The transform is derived once by :func:`~lightning_nerf.data.captured_box.fit_capture`, said, and handed out as
    ``Scene.to_world``. A subclass implements :meth:`read_world` and :meth:`captured`.
    """

    has_up: ClassVar[bool] = False  # whether the files' z is meant to be up
    normalize: bool = True
    _to_world: Tensor | None = None

    @abstractmethod
    def read_world(self, split: str) -> Scene:
        """The views of a split in the units of the files."""

    @abstractmethod
    def captured(self) -> CapturedCameras | None:
        """Cameras and points that decide the scene's units; None: there are none."""

    def read(self, split: str) -> Scene:
        """The views of a split, in the scene's units."""
        scene, to_world = self.read_world(split), self.to_world()
        return scene if to_world is None else to_scene_units(scene, to_world)

    def box(self) -> SceneBox:
        """[-1, 1]^3, or with ``normalize=False`` a box around what the cameras look at."""
        if not self.normalize and (captured := self.captured()) is not None:
            return SceneBox(derive_box(captured.c2w, captured.intrinsics, captured.sizes)[0])
        return SceneBox(torch.tensor(CAPTURE_BOX, dtype=torch.float32))

    def to_world(self) -> Tensor | None:
        """[4, 4] float64, from the scene's units to those of its files; None with ``normalize=False``."""
        if not self.normalize:
            return None
        if self._to_world is None:
            captured = self.captured()
            if captured is None:
                fit = CaptureFit(torch.eye(4, dtype=torch.float64), "no cameras to train on")
            else:
                fit = fit_capture(*captured[:4], has_up=self.has_up, upright=captured.upright)
            self.use_transform(fit.to_world)
            rank_zero_info(f"{self.name}: {fit.message()}")
        return self._to_world

    def use_transform(self, to_world: Tensor) -> None:
        """Take this transform, such as a checkpoint's, instead of deriving one."""
        self._to_world = to_world.detach().double().cpu()
