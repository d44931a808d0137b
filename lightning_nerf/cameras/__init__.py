"""Cameras, the rays through their pixels, and paths for films."""

from lightning_nerf.cameras.cameras import Cameras, image_rays, pixel_rays

__all__ = ["Cameras", "image_rays", "pixel_rays"]
