"""A script that two processes run: ``ddp.py cache out``. Each leaves what it saw in ``out/{strategy}.{rank}.pt``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_nerf.callbacks import OccupancyGridUpdate, PSNRLogger, RunResults, Telemetry
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.estimators.occupancy_grid import occupancy
from lightning_nerf.modules import InstantNGP
from lightning_nerf.types import RayBatch
from tests.scenes import tiny_module, tiny_scene, trainer

STEPS, BAD, EMPTY, HALF_EMPTY = 50, 20, 25, 30
STRATEGIES = ("ddp", "nerf_cuda_graph_ddp")


class Watched(InstantNGP):
    """Keeps each step's rays; rank 1 has a loss without bounds in one step."""

    rays: list[Tensor]

    def draw(self) -> RayBatch:
        batch = super().draw()
        self.rays.append(batch.rays.directions[:8].clone())
        return batch

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().render_loss(batch)
        bad = (self.key[1] == 1) & (self.key[2] == BAD)
        return loss * torch.where(bad, float("inf"), 1.0), logs


class Keep(L.Callback):
    """Shuts grids for a step; keeps weights, and validation's scores."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.scores: dict[str, float] = {}
        self.tested: dict[str, float] = {}
        self.samples = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == EMPTY or (batch_idx == HALF_EMPTY and trainer.global_rank == 1):
            self.open = pl_module.estimator.binaries.clone()
            pl_module.estimator.binaries.zero_()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == EMPTY or (batch_idx == HALF_EMPTY and trainer.global_rank == 1):
            pl_module.estimator.binaries.copy_(self.open)
        self.samples += int(outputs["n_samples"])
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.scores[outputs["name"]] = float(psnr(outputs["render"].rgb, outputs["truth"]))

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.tested[outputs["name"]] = float(psnr(outputs["render"].rgb, outputs["truth"]))


def main(cache: Path, out: Path, strategy: str) -> None:
    cells: list[Tensor] = []
    keys: list[list[int]] = []
    newest = occupancy.occupancy_newest

    def noted(chosen: Tensor, *args: Any) -> Tensor:
        cells.append(chosen.clone())
        keys.append(module.key.tolist())
        return newest(chosen, *args)

    torch.manual_seed(0)
    module = tiny_module()
    module.__class__, module.rays = Watched, []  # type: ignore[assignment]
    module.estimator.threshold = 1.0  # type: ignore[assignment]  # so that cells below the mean are empty
    keep, telemetry = Keep(), Telemetry(every_n_steps=1)
    callbacks = [OccupancyGridUpdate(every_n_steps=8), PSNRLogger(ssim=False), RunResults(), telemetry, keep]
    run = trainer(out, max_steps=STEPS, devices=2, strategy=strategy, callbacks=callbacks, limit_val_batches=1.0,
                  check_val_every_n_epoch=2)  # fmt: skip
    scene = tiny_scene(cache, n_val=4, n_test=3)
    occupancy.occupancy_newest = noted
    run.fit(module, scene)
    occupancy.occupancy_newest = newest
    optimizer = run.optimizers[0].state_dict()
    (metrics,) = run.validate(module, datamodule=scene, verbose=False)
    run.test(module, datamodule=scene, verbose=False)
    folder = run_folder(run)
    seen = {
        "state": module.state_dict(),
        "optimizer": optimizer,
        "weights": keep.weights,
        "rays": module.rays,
        "cells": cells,
        "keys": keys,
        "skipped": telemetry.latest["train/skipped_steps"],
        "scores": keep.scores,
        "psnr": metrics["val/psnr"],
        "tested": keep.tested,
        "samples": keep.samples,
        "results": json.loads((folder / "results.json").read_text()) if run.is_global_zero else None,
    }
    torch.save(seen, out / f"{strategy}.{run.global_rank}.pt")


if __name__ == "__main__":
    for name in STRATEGIES:
        main(Path(sys.argv[1]), Path(sys.argv[2]), name)
