"""Rendering of a module's views, in validation, test and prediction and by hand."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.checks import BadType
from lightning_nerf.data.base import BACKGROUNDS, NeRFDataModule
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.modules.steps import SteppedModule
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.frame import FrameRenderer
from lightning_nerf.types import Rays, Render


class EvaluatedView(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to score and save."""

    render: Render
    truth: Tensor  # [H, W, 3]
    name: str


class PredictedView(TypedDict):
    """What ``predict_step`` returns."""

    rgb: Tensor  # [H, W, 3], on the CPU
    name: str


class EvaluatedModule(SteppedModule):
    """A module that renders the views of its data module, or any camera."""

    field: RadianceField
    estimator: Estimator
    renderer: Renderer
    eval_samples: int

    @property
    def datamodule(self) -> NeRFDataModule:
        """The Trainer's data module."""
        datamodule = lightning_names.datamodule(self.trainer)
        if not isinstance(datamodule, NeRFDataModule):
            raise BadType(f"datamodule: expected a lightning_nerf.data.NeRFDataModule, got {type(datamodule).__name__}")
        return datamodule

    @property
    def frames(self) -> FrameRenderer:
        """Renders whole frames and any number of rays with the module's parts as they are."""
        return FrameRenderer(self.field, self.estimator, self.renderer, self.eval_samples)

    def render(self, rays: Rays, background: Tensor | None = None) -> Render:
        """Render any number of rays without gradient, see :meth:`FrameRenderer.rays`."""
        return self.frames.rays(rays, background)

    def eval_background(self) -> Tensor:
        """The color [3] that evaluation composites on."""
        return torch.full((3,), BACKGROUNDS[self.datamodule.eval_background], dtype=torch.float32, device=self.device)

    def render_view(self, split: str, index: int) -> Render:
        """Render a view of the data module: rgb [H, W, 3], opacity, depth and n_samples [H, W], extras [H, W, k]."""
        return self.render_camera(self.datamodule.scene(split).cameras, index, self.eval_background())

    def render_camera(self, cameras: Cameras, index: int, background: Tensor | None = None) -> Render:
        """Render one of any cameras, shaped as its picture; ``background``: [3], None: black.

        Cameras without bounds get the data module's.
        """
        if cameras.bounds is None:
            cameras = cameras.bounded(self.datamodule.near, self.datamodule.far)
        shape = cameras.shape(index)
        one = cameras.chosen(slice(index, index + 1)) if 0 <= index < cameras.n_views else cameras
        return self.frames.frame(one.to(self.device), 0 if one is not cameras else index, background, shape)

    def _evaluated(self, split: str, batch: tuple[int, str]) -> EvaluatedView:
        index, name = int(batch[0]), batch[1]
        truth = self.datamodule.scene(split).truth(index, self.eval_background())
        return {"render": self.render_view(split, index), "truth": truth, "name": name}

    def validation_step(self, batch: tuple[int, str], batch_idx: int) -> EvaluatedView:
        """Render one view of the validation split; callbacks score and save it."""
        return self._evaluated("val", batch)

    def test_step(self, batch: tuple[int, str], batch_idx: int) -> EvaluatedView:
        """Render one view of the test split; callbacks score and save it."""
        return self._evaluated("test", batch)

    def predict_step(self, batch: tuple[int, str], batch_idx: int) -> PredictedView:
        """Render one view of the test split: its rgb [H, W, 3] on the CPU, since Lightning keeps what this returns."""
        return {"rgb": self.render_view("test", int(batch[0])).rgb.cpu(), "name": batch[1]}
