"""The module of scenes that move: a field of position and time, and a curriculum over the times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument, check_integer
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.deformed import DeformedField
from lightning_nerf.fields.vanilla import VanillaField
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.types import RayBatch

_FIRST_SHARE = 0.05  # of the range of times, from which views are drawn in the first step of a curriculum


class DynamicNeRF(NeRFModule):
    """A scene that changes with time: :class:`NeRFModule` with a field that wants times, and a curriculum over them.

    ``field`` defaults to :class:`DeformedField` around a :class:`VanillaField`, ``estimator`` to an :class:`OccupancyGrid`
    over all times, whose cells are forgotten slowly: a cell is seen at the right time in one update of many.

    >>> from lightning_nerf import DeformedField, DynamicNeRF, VanillaField
    >>> field = DeformedField(VanillaField(width=64, hidden_layers=3, skip=1), identity_at_zero=True)
    >>> DynamicNeRF(field, curriculum_steps=1000, samples_per_step=2**12).estimator.decay
    0.99

    Args:
        field: one that wants times.
        estimator: where to place samples.
        curriculum_steps: in so many steps the views that are drawn grow from those of the first twentieth of the range of
            times to all, linearly; 0: all from the start. All rays of a step are of these views.
        kwargs: :class:`NeRFModule`'s other arguments.

    Source: Pumarola, Corona, Pons-Moll, Moreno-Noguer, "D-NeRF", CVPR 2021; its section 4 sorts views by time.
    """

    def __init__(
        self,
        field: RadianceField | None = None,
        estimator: Estimator | None = None,
        curriculum_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        check_integer("curriculum_steps", curriculum_steps, 0)
        super().__init__(
            DeformedField(VanillaField()) if field is None else field,
            OccupancyGrid(decay=0.99) if estimator is None else estimator,
            **kwargs,
        )
        if "times" not in self.field.wants:
            raise BadArgument(f"field: expected one that wants times, got {type(self.field).__name__}")
        self.curriculum_steps = curriculum_steps

    def setup(self, stage: str) -> None:
        """See :meth:`NeRFModule.setup`."""
        super().setup(stage)
        repeated = int(lightning_names.overfit_batches(self.trainer))
        if 0 < repeated < self.curriculum_steps:  # the number of a step would never reach the curriculum's end
            raise BadArgument(
                f"overfit_batches: expected at least curriculum_steps = {self.curriculum_steps}, or 0, got {repeated}"
            )

    def draw(self) -> RayBatch:
        """See :meth:`NeRFModule.draw`; with a curriculum, rays of views up to the step's time."""
        if self.curriculum_steps == 0 or (times := self.datamodule.scene_on(self.device).cameras.times) is None:
            return super().draw()
        return self.datamodule.draw(self.key, self.max_rays, self.n_rays, open_views=self.is_open(times))

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`NeRFModule.render_loss`; later rays of a batch of the user's own loader are inactive."""
        return super().render_loss(None if batch is None else self.close_later_rays(batch))

    def close_later_rays(self, batch: RayBatch) -> RayBatch:
        """The batch, with rays of later times than the step's inactive, if there is a curriculum."""
        times = batch.rays.times
        if self.curriculum_steps == 0 or times is None:
            return batch
        is_open = self.is_open(times)
        rays = batch.rays._replace(far=torch.where(is_open, batch.rays.far, batch.rays.near))
        return batch._replace(rays=rays, mask=is_open if batch.mask is None else batch.mask & is_open)

    def is_open(self, times: Tensor) -> Tensor:
        """Whether this step trains on times [N], [N] bool."""
        return self.field.unit_times(times) <= self.open_share()

    def open_share(self) -> Tensor:
        """The share of the range of times that this step's views are of, [] float32; inf behind the curriculum's end."""
        step = self.key[2].double()  # read on the device: a graph holds it
        steps = min(self.curriculum_steps, 2**62)  # torch takes no larger number
        share = _FIRST_SHARE + (1 - _FIRST_SHARE) * step / max(1, steps)
        return torch.where(step < steps, share, float("inf")).float()
