"""The interface of a data source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning_nerf.arguments import Recorded
from lightning_nerf.data.scene import Scene
from lightning_nerf.scene_box import SceneBox


class Source(Recorded, ABC):
    """Reads posed pictures: a file format, or a scene made by formulas.

    Drawing rays, moving pictures to the device, backgrounds and sharing views out among processes are done by
    :class:`~lightning_nerf.data.NeRFDataModule`, which takes any source. A subclass implements :meth:`read`.

    >>> import torch
    >>> from lightning_nerf import Cameras, Images, NeRFDataModule, Scene, Source
    >>> class Grey(Source):
    ...     def read(self, split):
    ...         cameras = Cameras.of_one_size(torch.eye(4)[None, :3], torch.tensor([2.0, 2, 2, 2]), 4, 4)
    ...         picture = torch.full((4, 4, 3), 128, dtype=torch.uint8)
    ...         return Scene(cameras, Images.from_pictures([picture]), [f"{split}_0"])
    >>> NeRFDataModule(Grey(), aabb=[[-1, -1, -1], [1, 1, 1]]).scene("test").names
    ['test_0']
    """

    @property
    def name(self) -> str:
        """The scene's name in reports."""
        return type(self).__name__

    def prepare(self) -> None:
        """Do work that one process must do for all, such as rendering into a cache. Called before :meth:`read`."""
        return

    def box(self) -> SceneBox | None:
        """The box that holds the scene, where it is known before pictures are read; None: the training scene's ``box``."""
        return None

    def has_test_views(self) -> bool:
        """Whether there is anything to test; False spares a fit the test at its end. Known before pictures are read."""
        return True

    def check(self) -> None:
        """Check the descriptions of all splits, without a look at pictures. Called before the first step of a fit."""
        return

    def times(self, split: str) -> Sequence[float | None] | None:
        """The time of each view, None for a view without one; None: not known before pictures are read."""
        return None

    @abstractmethod
    def read(self, split: str) -> Scene:
        """The views of split "train", "val" or "test", on the CPU. A split may have no views."""
