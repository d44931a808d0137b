"""Losses of a training step, each an object with a name and a weight."""

from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.depth import DepthSupervision
from lightning_nerf.losses.distortion import Distortion
from lightning_nerf.losses.interlevel import Interlevel
from lightning_nerf.losses.perturbation import PerturbationTV
from lightning_nerf.losses.photometric import Photometric
from lightning_nerf.losses.rounds import RoundPhotometric
from lightning_nerf.losses.sparsity import Sparsity
from lightning_nerf.losses.warp import TemporalSmoothness, WarpSize

__all__ = [
    "DepthSupervision",
    "Distortion",
    "Interlevel",
    "Loss",
    "PerturbationTV",
    "Photometric",
    "RoundPhotometric",
    "Sparsity",
    "TemporalSmoothness",
    "WarpSize",
]
