"""A source whose files leave scale, orientation and center to chance."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.captured_box import CAPTURE_BOX, CaptureFit, cameras_to_scene_units, fit_capture, to_scene_units
from lightning_nerf.data.default_box import derive_box
from lightning_nerf.data.forward_facing import facing_forward, fit_forward, forward_box
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
    nearest: Tensor | None = None  # [V]: where the rays of each view begin, if all views say so


class NormalizedSource(Source):
    """Reads views in the units of their files, and hands them out in units that fit the scene.

    The transform is derived once by :func:`~lightning_nerf.data.captured_box.fit_capture`, said, and handed out as
    ``Scene.to_world``. A subclass implements :meth:`read_world` and :meth:`captured`.
    """

    has_up: ClassVar[bool] = False  # whether the files' z is meant to be up
    normalize: bool = True
    ndc: bool = False  # whether the scene is turned for contraction "ndc"
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
        if to_world is None:
            return scene
        scene = to_scene_units(scene, to_world)
        return facing_forward(scene) if self.ndc else scene

    def box(self) -> SceneBox:
        """[-1, 1]^3; with ``normalize=False`` a box around what the cameras look at; with ``ndc`` their common frustum."""
        if self.ndc and (to_world := self.to_world()) is not None and (captured := self.captured()) is not None:
            cameras = Cameras(captured.c2w, captured.intrinsics, captured.sizes.flip(1))
            c2w = cameras_to_scene_units(cameras, to_world).c2w
            return SceneBox(forward_box(c2w, captured.intrinsics, captured.sizes), "ndc")
        if not self.normalize and (captured := self.captured()) is not None:
            return SceneBox(derive_box(captured.c2w, captured.intrinsics, captured.sizes)[0])
        return SceneBox(torch.tensor(CAPTURE_BOX, dtype=torch.float32))

    def to_world(self) -> Tensor | None:
        """[4, 4] float64, from the scene's units to those of its files; None with ``normalize=False``."""
        if not self.normalize:
            return None
        if self._to_world is None:
            captured = self.captured()
            if self.ndc and captured is not None:
                fit = fit_forward(*captured[:4], nearest=captured.nearest, upright=captured.upright)
            elif captured is None:
                fit = CaptureFit(torch.eye(4, dtype=torch.float64), "no cameras to train on")
            else:
                fit = fit_capture(*captured[:4], has_up=self.has_up, upright=captured.upright)
            self.use_transform(fit.to_world)
            rank_zero_info(f"{self.name}: {fit.message()}")
        return self._to_world

    def use_transform(self, to_world: Tensor) -> None:
        """Take this transform, such as a checkpoint's, instead of deriving one."""
        self._to_world = to_world.detach().double().cpu()
