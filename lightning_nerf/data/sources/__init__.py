"""Where scenes come from: a file format each."""

from lightning_nerf.data.sources.blender import BlenderSource
from lightning_nerf.data.sources.colmap import ColmapSource
from lightning_nerf.data.sources.dnerf import DNeRFSource
from lightning_nerf.data.sources.dynamic import SyntheticDynamicSource
from lightning_nerf.data.sources.found import FoundSource
from lightning_nerf.data.sources.llff import LLFFSource
from lightning_nerf.data.sources.open_scene import SyntheticUnboundedSource
from lightning_nerf.data.sources.synthetic import SyntheticSource
from lightning_nerf.data.sources.transforms import TransformsSource

__all__ = [
    "BlenderSource",
    "ColmapSource",
    "DNeRFSource",
    "FoundSource",
    "LLFFSource",
    "SyntheticDynamicSource",
    "SyntheticSource",
    "SyntheticUnboundedSource",
    "TransformsSource",
]
