"""Radiance fields: what is where. A field knows nothing of rays, grids or Lightning."""

from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.instant_ngp import InstantNGPField

__all__ = ["InstantNGPField", "RadianceField"]
