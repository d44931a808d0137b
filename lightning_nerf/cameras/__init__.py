"""Cameras, the rays through their pixels, and paths for films."""

from lightning_nerf.cameras.cameras import Cameras, image_rays, pixel_rays
from lightning_nerf.cameras.refinement import CameraRefinement

__all__ = ["CameraRefinement", "Cameras", "image_rays", "pixel_rays"]
