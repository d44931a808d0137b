"""The module as callbacks see it."""

from __future__ import annotations

from typing import Protocol, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.executors import Executor
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.types import RayBatch, Render


class TrainedModule(Protocol):
    """A :class:`~lightning_nerf.NeRFModule`, as callbacks ask for it; they lie below modules."""

    field: RadianceField
    estimator: Estimator
    losses: nn.ModuleList
    samples_per_step: int
    max_rays: int
    key: Tensor
    n_rays: Tensor
    samples_seen: Tensor

    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def datamodule(self) -> NeRFDataModule: ...  # noqa: D102
    @property
    def executor(self) -> Executor: ...  # noqa: D102
    def draw(self) -> RayBatch: ...  # noqa: D102
    def name_step(self, step: int | None = None, rank: int | None = None) -> None: ...  # noqa: D102
    def view_cameras(self, split: str) -> Cameras: ...  # noqa: D102
    def eval_background(self) -> Tensor: ...  # noqa: D102
    def render_view(self, split: str, index: int) -> Render: ...  # noqa: D102
    def render_camera(self, cameras: Cameras, index: int, background: Tensor | None = None) -> Render: ...  # noqa: D102


class ViewOutputs(TypedDict):
    """The result of a module's ``validation_step`` and ``test_step``."""

    render: Render
    truth: Tensor  # [H, W, 3]
    name: str


def trained(pl_module: L.LightningModule) -> TrainedModule:
    """The module that a hook is called with."""
    return cast(TrainedModule, pl_module)


def view_outputs(outputs: STEP_OUTPUT) -> ViewOutputs:
    """The outputs that a hook gets of a validation or test step."""
    return cast(ViewOutputs, outputs)


def step_outputs(outputs: STEP_OUTPUT) -> dict[str, Tensor]:
    """The outputs that a hook gets of a training step; empty where the step was skipped."""
    return cast("dict[str, Tensor]", outputs or {})
