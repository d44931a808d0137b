"""Posed pictures: sources read them, the data module draws rays from them on any device."""

from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.blender import BlenderData
from lightning_nerf.data.capture import CaptureData
from lightning_nerf.data.dnerf import DNeRFData
from lightning_nerf.data.dynamic import SyntheticDynamicScene
from lightning_nerf.data.open_scene import SyntheticUnboundedScene
from lightning_nerf.data.scene import Images, Scene
from lightning_nerf.data.source import Source
from lightning_nerf.data.synthetic import SyntheticScene

__all__ = [
    "BlenderData",
    "CaptureData",
    "DNeRFData",
    "Images",
    "NeRFDataModule",
    "Scene",
    "Source",
    "SyntheticDynamicScene",
    "SyntheticScene",
    "SyntheticUnboundedScene",
]
