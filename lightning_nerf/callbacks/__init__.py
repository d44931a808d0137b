"""Callbacks, one per file."""

from lightning_nerf.callbacks.clock import TrainingClock
from lightning_nerf.callbacks.ema import EMAWeights
from lightning_nerf.callbacks.image_logger import ImageLogger
from lightning_nerf.callbacks.interruption import Interruption
from lightning_nerf.callbacks.occupancy import OccupancyGridUpdate
from lightning_nerf.callbacks.preview import Preview
from lightning_nerf.callbacks.progress import NeRFProgressBar
from lightning_nerf.callbacks.psnr import PSNRLogger
from lightning_nerf.callbacks.quality_marks import QualityMarks
from lightning_nerf.callbacks.ray_budget import RayBudget
from lightning_nerf.callbacks.refined_cameras import WriteRefinedCameras
from lightning_nerf.callbacks.results import RunResults
from lightning_nerf.callbacks.round_histograms import RoundHistograms
from lightning_nerf.callbacks.telemetry import Telemetry
from lightning_nerf.callbacks.time_strip import TimeStrip
from lightning_nerf.callbacks.turntable import Turntable

__all__ = [
    "EMAWeights",
    "ImageLogger",
    "Interruption",
    "NeRFProgressBar",
    "OccupancyGridUpdate",
    "PSNRLogger",
    "Preview",
    "QualityMarks",
    "RayBudget",
    "RoundHistograms",
    "RunResults",
    "Telemetry",
    "TimeStrip",
    "TrainingClock",
    "Turntable",
    "WriteRefinedCameras",
]
