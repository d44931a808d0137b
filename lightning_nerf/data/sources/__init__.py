"""Where scenes come from: a file format each."""

from lightning_nerf.data.sources.blender import BlenderSource
from lightning_nerf.data.sources.dnerf import DNeRFSource
from lightning_nerf.data.sources.dynamic import SyntheticDynamicSource
from lightning_nerf.data.sources.open_scene import SyntheticUnboundedSource
from lightning_nerf.data.sources.synthetic import SyntheticSource

__all__ = ["BlenderSource", "DNeRFSource", "SyntheticDynamicSource", "SyntheticSource", "SyntheticUnboundedSource"]
