"""LightningModules, one per method: wiring, defaults and losses."""

import lightning_nerf.strategies  # noqa: F401  the names that Trainer(strategy=...) then knows
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.modules.dynamic import DynamicNeRF
from lightning_nerf.modules.instant_ngp import InstantNGP
from lightning_nerf.modules.schedule import WarmupDecay
from lightning_nerf.modules.unbounded import UnboundedNeRF
from lightning_nerf.modules.vanilla import VanillaNeRF

__all__ = ["DynamicNeRF", "InstantNGP", "NeRFModule", "UnboundedNeRF", "VanillaNeRF", "WarmupDecay"]
