"""Losses of a training step, each an object with a name and a weight."""

from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.photometric import Photometric
from lightning_nerf.losses.rounds import RoundPhotometric

__all__ = ["Loss", "Photometric", "RoundPhotometric"]
