"""Neural radiance fields for PyTorch Lightning, on one fast CPU and CUDA backend.

Names are loaded when first used: importing this package needs no Lightning, no compiler, no GPU and no wandb.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Rays": "types",
    "PackedSamples": "types",
    "FieldOutput": "types",
    "Render": "types",
    "RayBatch": "types",
    "SceneBox": "types",
    "HashGrid": "encodings",
    "SphericalHarmonics": "encodings",
    "Frequency": "encodings",
    "FusedAdam": "optim",
    "RadianceField": "fields",
    "InstantNGPField": "fields",
    "Estimator": "estimators",
    "OccupancyGrid": "estimators",
    "Renderer": "renderers",
    "VolumeRenderer": "renderers",
    "rendering": "renderers.rendering",
    "Executor": "executors",
    "ExecutorStrategy": "strategies",
    "NeRFModule": "modules",
    "InstantNGP": "modules",
    "NeRFDataModule": "data",
    "BlenderData": "data",
    "SyntheticScene": "data",
    "Views": "data",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from lightning_nerf.data import BlenderData, NeRFDataModule, SyntheticScene, Views
    from lightning_nerf.encodings import Frequency, HashGrid, SphericalHarmonics
    from lightning_nerf.estimators import Estimator, OccupancyGrid
    from lightning_nerf.executors import Executor
    from lightning_nerf.fields import InstantNGPField, RadianceField
    from lightning_nerf.modules import InstantNGP, NeRFModule
    from lightning_nerf.optim import FusedAdam
    from lightning_nerf.renderers import Renderer, VolumeRenderer
    from lightning_nerf.renderers.rendering import rendering
    from lightning_nerf.strategies import ExecutorStrategy
    from lightning_nerf.types import FieldOutput, PackedSamples, RayBatch, Rays, Render, SceneBox


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
