"""Renderers: from samples and what a field says of them to pixels. A renderer knows nothing of fields or estimators."""

from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.frame import FrameRenderer
from lightning_nerf.renderers.volume import VolumeRenderer

__all__ = ["FrameRenderer", "Renderer", "VolumeRenderer"]
