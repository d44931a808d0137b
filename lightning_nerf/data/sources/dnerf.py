"""The D-NeRF format: NeRF-Synthetic's files with a time in every frame."""

from __future__ import annotations

from typing import ClassVar

from lightning_nerf.data.sources.blender import BlenderSource


class DNeRFSource(BlenderSource):
    """A scene that moves, in the D-NeRF format (Pumarola et al., "D-NeRF", CVPR 2021).

    The files are those of :class:`BlenderSource`, and so are the arguments. Every frame has a ``time``, any finite number,
    which is kept as it is given. A frame without one is an error: its place in the list is never taken for its time.
    """

    needs_times: ClassVar[bool] = True
