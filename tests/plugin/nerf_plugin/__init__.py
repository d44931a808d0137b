"""What a third party brings to lightning-nerf, each by its class_path."""

from nerf_plugin.callback import LabelAccuracy
from nerf_plugin.data import TwoBalls
from nerf_plugin.estimator import CoarseToFine, UniformSamples
from nerf_plugin.executor import OffloadExecutor
from nerf_plugin.field import LabelField, TintedField, TurningField
from nerf_plugin.loss import AgreeingRounds, LabelLoss
from nerf_plugin.module import LabelNeRF

__all__ = [
    "AgreeingRounds",
    "CoarseToFine",
    "LabelAccuracy",
    "LabelField",
    "LabelLoss",
    "LabelNeRF",
    "OffloadExecutor",
    "TintedField",
    "TurningField",
    "TwoBalls",
    "UniformSamples",
]
