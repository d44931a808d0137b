"""Keeps the occupancy grid, or another estimator that learns, up with the field."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from lightning_nerf.checks import check_integer
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid
from lightning_nerf.executors import EAGER


class OccupancyGridUpdate(L.Callback):
    """Update the module's occupancy grid, in place, before every ``every_n_steps``-th training step.

    Of several processes each evaluates its share of the cells that one alone would evaluate, at the same points, and all
    grids take in the maximum. Any other estimator that has ``needs_update`` is updated in the same steps, with the same key
    on every process and never within a CUDA graph; those that have not are left alone.

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

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Close invisible cells, unless the grid has a history."""
        grid = pl_module.estimator
        if not self.mark_invisible or not isinstance(grid, OccupancyGrid) or bool((grid.occs != 0).any()):
            return
        datamodule = pl_module.datamodule
        views = datamodule.views("train")
        height, width = views.images.shape[1:3]
        grid.mark_invisible_cells(
            views.c2w.to(pl_module.device), views.intrinsics.to(pl_module.device), width, height, near=datamodule.near
        )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Update the grid where it is due."""
        estimator = pl_module.estimator
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        every = self.every_n_steps if step < self.late else self.late_every_n_steps
        if not estimator.needs_update or step % every != 0:
            return
        pl_module.name_step(step, rank=0)
        executor, name, kind, share = EAGER, "the estimator's update", type(estimator), {}
        if isinstance(estimator, OccupancyGrid) and kind.update is OccupancyGrid.update:
            if trainer.world_size > 1:  # a reduction over ranks is not for a graph
                share = {"share": (trainer.global_rank, trainer.world_size)}
            elif kind.cells is OccupancyGrid.cells:
                warming = step < estimator.warmup_steps  # what an update does depends on the step through this alone
                executor, name = pl_module.executor, f"the occupancy grid's update ({'all' if warming else 'chosen'} cells)"
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            executor.run(name, lambda: estimator.update(pl_module.field.density, step=step, key=pl_module.key, **share))
