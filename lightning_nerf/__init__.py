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
    "SceneBox": "scene_box",
    "Cameras": "cameras",
    "CameraRefinement": "cameras",
    "Densities": "types",
    "Placement": "types",
    "Pruning": "types",
    "Query": "types",
    "RenderedRound": "types",
    "Round": "types",
    "Step": "types",
    "HashGrid": "encodings",
    "SphericalHarmonics": "encodings",
    "Frequency": "encodings",
    "FusedAdam": "optim",
    "RadianceField": "fields",
    "InstantNGPField": "fields",
    "SpaceTimeField": "fields",
    "VanillaField": "fields",
    "WideMLP": "fields",
    "DeformedField": "fields",
    "ProposalField": "fields",
    "Estimator": "estimators",
    "as_query": "estimators",
    "OccupancyGrid": "estimators",
    "Uniform": "estimators",
    "Hierarchical": "estimators",
    "Proposal": "estimators",
    "Renderer": "renderers",
    "VolumeRenderer": "renderers",
    "rendering": "renderers.rendering",
    "FrameRenderer": "renderers",
    "Loss": "losses",
    "Photometric": "losses",
    "RoundPhotometric": "losses",
    "Interlevel": "losses",
    "DepthSupervision": "losses",
    "Distortion": "losses",
    "WarpSize": "losses",
    "Sparsity": "losses",
    "TemporalSmoothness": "losses",
    "PerturbationTV": "losses",
    "states": "capabilities",
    "BadArgument": "checks",
    "Executor": "executors",
    "StepProgram": "executors",
    "ExecutorStrategy": "strategies",
    "NeRFModule": "modules",
    "InstantNGP": "modules",
    "VanillaNeRF": "modules",
    "DynamicNeRF": "modules",
    "UnboundedNeRF": "modules",
    "NeRFDataModule": "data",
    "BlenderData": "data",
    "CaptureData": "data",
    "DNeRFData": "data",
    "SyntheticScene": "data",
    "SyntheticDynamicScene": "data",
    "SyntheticUnboundedScene": "data",
    "Images": "data",
    "Scene": "data",
    "Source": "data",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from lightning_nerf.cameras import CameraRefinement, Cameras
    from lightning_nerf.capabilities import states
    from lightning_nerf.checks import BadArgument
    from lightning_nerf.data import (
        BlenderData,
        CaptureData,
        DNeRFData,
        Images,
        NeRFDataModule,
        Scene,
        Source,
        SyntheticDynamicScene,
        SyntheticScene,
        SyntheticUnboundedScene,
    )
    from lightning_nerf.encodings import Frequency, HashGrid, SphericalHarmonics
    from lightning_nerf.estimators import Estimator, Hierarchical, OccupancyGrid, Proposal, Uniform, as_query
    from lightning_nerf.executors import Executor, StepProgram
    from lightning_nerf.fields import (
        DeformedField,
        InstantNGPField,
        ProposalField,
        RadianceField,
        SpaceTimeField,
        VanillaField,
        WideMLP,
    )
    from lightning_nerf.losses import (
        DepthSupervision,
        Distortion,
        Interlevel,
        Loss,
        PerturbationTV,
        Photometric,
        RoundPhotometric,
        Sparsity,
        TemporalSmoothness,
        WarpSize,
    )
    from lightning_nerf.modules import DynamicNeRF, InstantNGP, NeRFModule, UnboundedNeRF, VanillaNeRF
    from lightning_nerf.optim import FusedAdam
    from lightning_nerf.renderers import FrameRenderer, Renderer, VolumeRenderer
    from lightning_nerf.renderers.rendering import rendering
    from lightning_nerf.scene_box import SceneBox
    from lightning_nerf.strategies import ExecutorStrategy
    from lightning_nerf.types import (
        Densities,
        FieldOutput,
        PackedSamples,
        Placement,
        Pruning,
        Query,
        RayBatch,
        Rays,
        Render,
        RenderedRound,
        Round,
        Step,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
