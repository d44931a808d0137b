"""Data modules: they hold posed images and draw rays from them on any device; the loaders yield only numbers."""

from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.blender import BlenderData
from lightning_nerf.data.synthetic import SyntheticScene
from lightning_nerf.data.views import Views

__all__ = ["BlenderData", "NeRFDataModule", "SyntheticScene", "Views"]
