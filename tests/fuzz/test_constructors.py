"""Constructors with arguments that nobody should pass: they construct, or say which argument is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_nerf import callbacks
from lightning_nerf.checkpoint_io import AtomicCheckpointIO
from lightning_nerf.data import BlenderData, DNeRFData, NeRFDataModule, SyntheticDynamicScene, SyntheticScene
from lightning_nerf.data.sources import BlenderSource, SyntheticSource
from lightning_nerf.encodings import Frequency, HashGrid, SphericalHarmonics
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.executors import CUDAGraphExecutor, EagerExecutor
from lightning_nerf.fields import DeformedField, InstantNGPField, SpaceTimeField
from lightning_nerf.losses import PerturbationTV, Photometric, Sparsity, TemporalSmoothness, WarpSize
from lightning_nerf.modules import NeRFModule, WarmupDecay
from lightning_nerf.optim import FusedAdam
from lightning_nerf.renderers import FrameRenderer, VolumeRenderer
from lightning_nerf.strategies import CUDAGraphDDPStrategy, CUDAGraphStrategy, ExecutorStrategy
from tests.fuzz.strategies import INF, NAN, bounded, fuzz
from tests.scenes import tiny_module

# None of them is proper and large at once, such as OccupancyGrid(resolution=1000), 5 GB: what is refused costs nothing.
NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 4, 5, 8, 16, 29, 60, 100, 10**6, 2**31, 2**62, 10**400]
NUMBERS += [-INF, -1e300, -1.0, -1e-45, 0.0, 1e-300, 1e-45, 0.1, 0.5, 1.0, 1.5, 2.0, 90.0, 3e38, 1e39, 1e300, INF, NAN]
OBJECTS = [None, True, False, "", "a", "1", "white", "~nobody/x", b"1", [], [1], [1, 2], [2, 1], (0.5, 0.9), {}, {"a": 1}]
OBJECTS += [[[0, 0, 0], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]], [[0, 0], [1]], [NAN, 1], 1j, object(), int, Path("a")]
OBJECTS += [torch.tensor(1), torch.tensor([0.5, 0.5]), torch.float32, nn.Identity(), len]

SMALL_FIELD = InstantNGPField(log2_table_size=8)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(3))]


Case = tuple[Callable[..., Any], tuple[str, ...], dict[str, Any]]


def case(construct: Callable[..., Any], *names: str, **proper: Any) -> Case:
    """How to construct something, the arguments to spoil, and those that it needs or that keep it small."""
    return construct, names, proper


TRAINING = ("samples_per_step", "march_factor", "max_rays", "initial_rays", "random_background_steps", "huber_delta")
TRAINING += ("optimizer", "lr_scheduler", "seed", "eval_samples", "renderer", "losses")
BOX = ("aabb", "near", "far", "background", "eval_background", "contraction")
SIZES = ("n_levels", "n_features", "log2_table_size", "base_resolution", "max_resolution")

CONSTRUCTORS = {
    "HashGrid": case(HashGrid, "n_dims", *SIZES),
    "SphericalHarmonics": case(SphericalHarmonics, "degree"),
    "Frequency": case(Frequency, "n_frequencies", "include_input", "n_dims", "scale", n_frequencies=4),
    "InstantNGPField": case(
        InstantNGPField, *SIZES, "width", "geometry_features", "density_layers", "color_layers", "sh_degree",
        "density_bias", "fused", log2_table_size=8,
    ),
    "OccupancyGrid": case(
        OccupancyGrid, "resolution", "n_levels", "decay", "threshold", "warmup_steps", "step_size", "cone_angle",
        "alpha_threshold", "early_stop_eps", "steps_per_query", "n_times", resolution=16,
    ),
    "SpaceTimeField": case(
        SpaceTimeField, *SIZES, "time_axes", "time_log2_table_size", "time_max_resolution", "time_cells", "density_bias",
        "fused", log2_table_size=8, time_log2_table_size=8,
    ),
    "DeformedField": case(
        DeformedField, "canonical", "width", "hidden_layers", "skip", "position_frequencies", "time_frequencies",
        "identity_at_zero", "fused", canonical=SMALL_FIELD,
    ),
    "WarpSize": case(WarpSize, "weight", "name"),
    "Sparsity": case(Sparsity, "n_points", "weight", "name"),
    "TemporalSmoothness": case(TemporalSmoothness, "of", "max_shift", "weight", "name"),
    "PerturbationTV": case(PerturbationTV, "max_offset", "max_shift", "n_points", "weight", "name"),
    "SyntheticDynamicScene": case(SyntheticDynamicScene, "resolution", "n_train", "n_test", "n_val", "seed", *BOX),
    "DNeRFData": case(DNeRFData, "root", "holdout_every", "downscale", "n_train", *BOX, root="nowhere"),
    "VolumeRenderer": case(VolumeRenderer, "early_stop_eps"),
    "FrameRenderer": case(
        FrameRenderer, "max_samples", field=SMALL_FIELD, estimator=OccupancyGrid(8), renderer=VolumeRenderer()
    ),
    "Photometric": case(Photometric, "delta", "weight", "name"),
    "InstantNGP": case(lambda **options: tiny_module(**options), "field", "estimator", *TRAINING),
    "NeRFModule": case(
        lambda **options: NeRFModule(**{"field": SMALL_FIELD, "estimator": OccupancyGrid(8), **options}),
        "field", "estimator", *TRAINING,
    ),
    "FusedAdam": case(
        lambda **options: FusedAdam(parameters(), **options),
        "lr", "betas", "eps", "weight_decay", "ema_decay", "ema_share", "ema_every", "skip_non_finite",
    ),
    "WarmupDecay": case(
        lambda **options: WarmupDecay(**{"optimizer": FusedAdam(parameters()), **options}),
        "optimizer", "total_steps", "warmup_steps", "decay_start", "final", total_steps=10,
    ),
    "BlenderData": case(
        BlenderData, "root", "train_split", "val_split", "test_split", "holdout_every", "downscale", "val_every",
        "test_every", "n_train", "n_val", "n_test", *BOX, root="nowhere",
    ),
    "NeRFDataModule": case(NeRFDataModule, "source", *BOX, source=SyntheticSource()),
    "BlenderSource": case(
        BlenderSource, "root", "train_split", "val_split", "test_split", "holdout_every", "downscale", "val_every",
        "test_every", "n_train", "n_val", "n_test", root="nowhere",
    ),
    "SyntheticSource": case(SyntheticSource, "resolution", "n_train", "n_test", "n_val", "seed", "cache_dir"),
    "SyntheticScene": case(SyntheticScene, "resolution", "n_train", "n_test", "n_val", "seed", "cache_dir", *BOX),
    "AtomicCheckpointIO": case(AtomicCheckpointIO),
    "CUDAGraphExecutor": case(CUDAGraphExecutor, "warmup_steps"),
    "ExecutorStrategy": case(ExecutorStrategy, "executor", "device", executor=EagerExecutor()),
    "CUDAGraphStrategy": case(CUDAGraphStrategy, "device", "warmup_steps"),
    "CUDAGraphDDPStrategy": case(CUDAGraphDDPStrategy, "warmup_steps"),
    "ImageLogger": case(callbacks.ImageLogger, "n_views"),
    "EMAWeights": case(callbacks.EMAWeights),
    "NeRFProgressBar": case(callbacks.NeRFProgressBar, "refresh_rate", "refresh_seconds"),
    "OccupancyGridUpdate": case(
        callbacks.OccupancyGridUpdate, "every_n_steps", "late_every_n_steps", "late", "mark_invisible"
    ),
    "Preview": case(callbacks.Preview, "every_seconds", "view", "split"),
    "PSNRLogger": case(callbacks.PSNRLogger, "ssim"),
    "QualityMarks": case(callbacks.QualityMarks, "marks_seconds", "views_every", "split"),
    "RayBudget": case(callbacks.RayBudget, "every_n_steps", "fill"),
    "RoundHistograms": case(callbacks.RoundHistograms, "every_n_steps", "n_rays", "n_bins"),
    "RunResults": case(callbacks.RunResults, "recipe"),
    "Telemetry": case(callbacks.Telemetry, "every_n_steps"),
    "Interruption": case(callbacks.Interruption),
    "TrainingClock": case(callbacks.TrainingClock),
    "TimeStrip": case(callbacks.TimeStrip, "n_times", "view"),
    "Turntable": case(callbacks.Turntable, "n_frames", "elevation", "fps"),
    "WriteRefinedCameras": case(callbacks.WriteRefinedCameras),
}  # fmt: skip


@st.composite
def arguments(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, Any]:
    """Some of the arguments, mostly one or two, and now and then one that the constructor does not have."""
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)) if names else []
    if not chosen or draw(st.integers(0, 19)) == 0:
        chosen.append("no_such_argument")
    return {name: draw(st.sampled_from(NUMBERS) | st.sampled_from(OBJECTS)) for name in chosen}


@pytest.mark.parametrize("name", CONSTRUCTORS)
@fuzz
@given(st.data())
def test_constructors(name: str, data: st.DataObject) -> None:
    construct, names, proper = CONSTRUCTORS[name]
    given_ = data.draw(arguments(names))
    refusal = None
    try:
        with bounded():
            construct(**{**proper, **given_})
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if refusal is None:
        assert "no_such_argument" not in given_
    elif "takes no arguments" not in refusal:  # what Python says of a class without a constructor
        assert set(re.findall(r"\w+", refusal)) & set(given_), f"which argument? {refusal}"


def test_every_callback_is_here() -> None:
    assert set(callbacks.__all__) <= set(CONSTRUCTORS)
