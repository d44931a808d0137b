"""Optimizers that wait for nothing, and what makes any other skip spoilt steps."""

from lightning_nerf.optim.adam import FusedAdam
from lightning_nerf.optim.guard import StepGuard
from lightning_nerf.optim.mirror import HalfMirror

__all__ = ["FusedAdam", "HalfMirror", "StepGuard"]
