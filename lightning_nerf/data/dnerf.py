"""The data module of a scene in the D-NeRF format."""

from __future__ import annotations

from typing import ClassVar

from lightning_nerf.data.blender import BlenderData
from lightning_nerf.data.sources.blender import BlenderSource
from lightning_nerf.data.sources.dnerf import DNeRFSource


class DNeRFData(BlenderData):
    """A :class:`BlenderData` of a :class:`~lightning_nerf.data.sources.DNeRFSource`: every frame has a ``time``.

    The arguments are those of :class:`BlenderData`.

    >>> from lightning_nerf import DNeRFData
    >>> DNeRFData("path/to/lego").source.needs_times
    True
    """

    source_class: ClassVar[type[BlenderSource]] = DNeRFSource
