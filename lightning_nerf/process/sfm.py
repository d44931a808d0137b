"""What the command needs of a structure-from-motion library; :mod:`lightning_nerf.process.colmap` has it of pycolmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

Count = Callable[[int], None]  # called with the number of what is done so far
Pair = tuple[str, str]  # names of two pictures


class Lens(NamedTuple):
    """A camera's intrinsics, as COLMAP has them: the middle of the first pixel is at (0.5, 0.5)."""

    model: str  # COLMAP's name
    width: int
    height: int
    params: tuple[float, ...]


class Pose(NamedTuple):
    """Where a picture was taken."""

    lens: int  # key of Model.lenses
    world_to_camera: np.ndarray  # [3, 4]; the camera looks along +z, y is down


class Model(NamedTuple):
    """Pictures whose poses are known in one coordinate system."""

    lenses: dict[int, Lens]
    poses: dict[str, Pose]  # by the picture's name
    n_points: int
    error: float  # mean reprojection error in pixels


class StructureFromMotion(Protocol):
    """Finds the poses of pictures, stage by stage. What a stage has found is on the disk at once."""

    version: str

    def reset(self) -> None:
        """Forget all features and matches."""
        ...

    def add_pictures(self, groups: Sequence[Sequence[str]]) -> None:
        """Enter pictures; those of one group share a camera. Pictures that are in already stay as they are."""
        ...

    def extract(self, names: Sequence[str], count: Count) -> None:
        """Find features in those of the pictures that have none yet."""
        ...

    def match(self, pairs: Sequence[Pair], count: Count) -> None:
        """Match the features of those of the pairs that are not matched yet."""
        ...

    def map(self, mapper: str, folder: Path, count: Count) -> list[Path]:
        """Find poses; returns the folders of the models, each of which has a coordinate system of its own."""
        ...

    def read(self, folder: Path) -> Model:
        """A model that :meth:`map` has written."""
        ...

    def write_points(self, folder: Path, path: Path) -> None:
        """Write the points of a model as a PLY file."""
        ...

    def n_features(self) -> dict[str, int]:
        """The number of features of each picture."""
        ...

    def n_partners(self) -> dict[str, int]:
        """With how many other pictures each shares enough matches."""
        ...
