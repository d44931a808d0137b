"""Tiny scenes and modules that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_nerf.data import NeRFDataModule, Scene, SyntheticScene
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP


def tiny_scene(cache: Path, **options: Any) -> SyntheticScene:
    return SyntheticScene(**{"resolution": 24, "n_train": 6, "n_test": 2, "cache_dir": str(cache), **options})


class TimedSource(SyntheticSource):
    """The synthetic scene, which stands still, with times from 2 to 5."""

    def read(self, split: str) -> Scene:
        scene = super().read(split)
        return scene._replace(cameras=scene.cameras._replace(times=torch.linspace(2.0, 5.0, scene.n_views)))


def timed_scene(cache: Path) -> NeRFDataModule:
    return NeRFDataModule(TimedSource(24, n_train=6, n_test=2, cache_dir=str(cache)), near=2.0, far=6.0)


def tiny_module(**options: Any) -> InstantNGP:
    """A module small enough for a step of a few milliseconds on a CPU."""
    field = InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=64, width=16)
    estimator = OccupancyGrid(resolution=16, warmup_steps=16, step_size=0.05)
    defaults = {"samples_per_step": 2048, "max_rays": 1024, "initial_rays": 64, "seed": 3}
    return InstantNGP(**{"field": field, "estimator": estimator, **defaults, **options})


def fused_module(**options: Any) -> InstantNGP:
    """One whose field runs in one kernel on a GPU, as those of the recipes do."""
    torch.manual_seed(0)
    return tiny_module(**{"field": fused_field(), **options})


def fused_field() -> InstantNGPField:
    field = InstantNGPField(n_levels=8, n_features=4, log2_table_size=12, base_resolution=8, max_resolution=64)
    assert field.fused
    return field


def trainer(tmp_path: Path, **options: Any) -> L.Trainer:
    """A quiet CPU Trainer."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": str(tmp_path),
    }
    return L.Trainer(**{**defaults, **options})
