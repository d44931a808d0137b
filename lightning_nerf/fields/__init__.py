"""Radiance fields: what is where. A field knows nothing of rays, grids or Lightning."""

from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.deformed import DeformedField
from lightning_nerf.fields.instant_ngp import InstantNGPField
from lightning_nerf.fields.proposal import ProposalField
from lightning_nerf.fields.space_time import SpaceTimeField
from lightning_nerf.fields.vanilla import VanillaField
from lightning_nerf.fields.wide_mlp import WideMLP

__all__ = [
    "DeformedField",
    "InstantNGPField",
    "ProposalField",
    "RadianceField",
    "SpaceTimeField",
    "VanillaField",
    "WideMLP",
]
