"""Keeps the occupancy grid, or another estimator that learns, up with the field."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.trained import TrainedModule, trained
from lightning_nerf.cameras.cameras import checked_bounds
from lightning_nerf.capabilities import has
from lightning_nerf.checks import check_integer
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.query import DensityFn
from lightning_nerf.executors import EAGER
from lightning_nerf.fields.base import RadianceField


class OccupancyGridUpdate(L.Callback):
    """Update the module's occupancy grid, in place, before every ``every_n_steps``-th training step.

    Of several processes each evaluates its share of the cells that one alone would evaluate, at the same points, and all
    grids take in the maximum. Any estimator that has ``needs_update`` is updated in the same steps, with the same key on
    every process; those that have not are left alone. A field that wants times is evaluated at random times between the
    first and the last of the training views, for a grid with bins in time at those of one bin after the other, outside of
    CUDA graphs: the host says which.

    An estimator of your own states what more it can do, as :class:`OccupancyGrid` does: by a method
    ``mark_invisible_cells``; by ``@states("shared")`` on an ``update`` that takes ``share``; by ``@states("captured")`` on
    an ``update``, and on its ``cells`` if there are any, that a CUDA graph can hold, and that depends on the step through
    ``step < warmup_steps`` alone.

    >>> from lightning_nerf.callbacks import OccupancyGridUpdate
    >>> OccupancyGridUpdate(every_n_steps=16, late_every_n_steps=64).late
    2000

    Args:
        every_n_steps: steps between updates, >= 1.
        late_every_n_steps: the same from step ``late`` on, when the scene has taken shape; None: no change.
        late: a step, >= 0.
        mark_invisible: at the start of training, close the cells that no training camera sees: nothing would ever train
            them, and what the field says there by chance would cost samples.
    """

    def __init__(
        self,
        every_n_steps: int = 16,
        late_every_n_steps: int | None = None,
        late: int = 2000,
        mark_invisible: bool = True,
    ) -> None:
        check_integer("every_n_steps", every_n_steps, 1)
        if late_every_n_steps is not None:
            check_integer("late_every_n_steps", late_every_n_steps, 1)
        check_integer("late", late, 0)
        self.every_n_steps = every_n_steps
        self.late_every_n_steps = every_n_steps if late_every_n_steps is None else late_every_n_steps
        self.late = late
        self.mark_invisible = mark_invisible

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close invisible cells, unless the grid has a history."""
        module = trained(pl_module)
        grid = module.estimator
        if not self.mark_invisible or not isinstance(grid, MarksCells) or _has_history(grid):
            return
        cameras = module.datamodule.scene("train").cameras.to(module.device)
        width, height = cameras.size.unbind(-1)
        grid.mark_invisible_cells(
            cameras.c2w, cameras.intrinsics, width, height, near=checked_bounds(cameras)[:, 0].double()
        )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int) -> None:
        """Update the grid where it is due."""
        module = trained(pl_module)
        estimator = module.estimator
        step = lightning_names.batches_done(trainer)
        every = self.every_n_steps if step < self.late else self.late_every_n_steps
        if not estimator.needs_update or step % every != 0:
            return
        module.name_step(step, rank=0)
        executor, name, options = EAGER, "the estimator's update", _times(module)
        if has(estimator.update, "shared") and trainer.world_size > 1:  # a reduction over ranks is not for a graph
            options["share"] = (trainer.global_rank, trainer.world_size)
        elif _is_captured(estimator):
            warming = step < getattr(estimator, "warmup_steps", 0)
            name = f"the occupancy grid's update ({'all' if warming else 'chosen'} cells)"
            executor = module.executor
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            executor.run(name, lambda: estimator.update(_density(module.field), step=step, key=module.key, **options))


@runtime_checkable
class MarksCells(Protocol):
    """An estimator that can close the cells that no camera sees."""

    def mark_invisible_cells(self, c2w: Tensor, intrinsics: Tensor, width: Tensor, height: Tensor, near: Tensor) -> None:
        """See :meth:`OccupancyGrid.mark_invisible_cells`."""
        ...


def _has_history(grid: MarksCells) -> bool:
    """Whether values of cells, where a grid keeps them as ``occs``, come from former steps."""
    occs = getattr(grid, "occs", None)
    return isinstance(occs, Tensor) and bool((occs != 0).any())


def _is_captured(estimator: Estimator) -> bool:
    """Whether a CUDA graph can hold the update, and the choice of cells that it calls; with bins the host says which."""
    cells = getattr(estimator, "cells", None)
    if getattr(estimator, "bins", None) is not None:
        return False
    return has(estimator.update, "captured") and (cells is None or has(cells, "captured"))


def _times(module: TrainedModule) -> dict[str, Any]:
    return {"times": module.datamodule.time_range()} if "times" in module.field.wants else {}


def _density(field: RadianceField) -> DensityFn:
    """The field's density as an estimator asks for it: times by position; a field takes them by keyword."""
    if "times" not in field.wants:
        return field.density

    def density(positions: Tensor, times: Tensor) -> Tensor:
        return field.density(positions, times=times)  # type: ignore[call-arg]

    return density
