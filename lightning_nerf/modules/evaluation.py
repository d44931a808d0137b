"""Rendering of a module's views, in validation, test and prediction and by hand."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.refinement import CameraRefinement
from lightning_nerf.checks import BadArgument, BadType, check_instance
from lightning_nerf.data.base import BACKGROUNDS, NeRFDataModule
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.modules.steps import SteppedModule
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.frame import FrameRenderer
from lightning_nerf.types import Rays, Render

_INSTEAD = (
    "to render a view of a loaded module, call module.render_view('test', 0, "
    "datamodule=NeRFDataModule.load_from_checkpoint('the same.ckpt')), or module.render_camera(cameras, 0, background) for "
    "other cameras; to score or train it, call trainer.test(module, datamodule=...) or trainer.fit(module, datamodule=...)"
)


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
    cameras: CameraRefinement | None

    @property
    def datamodule(self) -> NeRFDataModule:
        """The Trainer's data module. A module without a Trainer has none; the error says what to call instead."""
        trainer = lightning_names.attached_trainer(self)
        if trainer is None:
            raise BadArgument(
                f"datamodule: {type(self).__name__} has no Trainer whose data module it could ask; {_INSTEAD}"
            )
        datamodule = lightning_names.datamodule(trainer)
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
        return self._background_of(self.datamodule)

    def render_view(self, split: str, index: int, datamodule: NeRFDataModule | None = None) -> Render:
        """Render a view of the data module: rgb [H, W, 3], opacity, depth and n_samples [H, W], extras [H, W, k].

        Args:
            split: "train", "val" or "test".
            index: the view's number in the split.
            datamodule: whose view it is; None: the Trainer's. A module that was loaded from a checkpoint has no Trainer:
                give it ``NeRFDataModule.load_from_checkpoint`` of the same file.
        """
        check_instance("datamodule", datamodule, NeRFDataModule, type(None))
        data = self.datamodule if datamodule is None else datamodule
        return self.render_camera(self.view_cameras(split, data), index, self._background_of(data))

    def view_cameras(self, split: str, datamodule: NeRFDataModule | None = None) -> Cameras:
        """The cameras of a split's views, as :meth:`render_view` sees them: those trained on with what was learned of them.

        Args:
            split: "train", "val" or "test".
            datamodule: whose views they are; None: the Trainer's.
        """
        cameras = (self.datamodule if datamodule is None else datamodule).scene(split).cameras
        return cameras if self.cameras is None or split != "train" else self.cameras.refined(cameras)

    def _background_of(self, data: NeRFDataModule) -> Tensor:
        return torch.full((3,), BACKGROUNDS[data.eval_background], dtype=torch.float32, device=self.device)

    def render_camera(self, cameras: Cameras, index: int, background: Tensor | None = None) -> Render:
        """Render one of any cameras, shaped as its picture; ``background``: [3], None: black.

        Cameras without bounds get the data module's.
        """
        if cameras.bounds is None:
            if lightning_names.attached_trainer(self) is None:
                raise BadArgument(
                    f"cameras: expected bounds, since {type(self).__name__} has no Trainer whose data module knows them; "
                    "call module.render_camera(cameras.bounded(near, far), index, background)"
                )
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
