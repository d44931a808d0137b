"""``transforms.json`` as instant-ngp and nerfstudio write it of a capture."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning_nerf.checks import MissingFile, check_instance, check_integer
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.sources.blender import BlenderSource
from lightning_nerf.data.sources.normalized import CapturedCameras, NormalizedSource
from lightning_nerf.data.views import camera_tensors, upright_poses


class TransformsSource(NormalizedSource, BlenderSource):
    """A capture whose cameras are in ``transforms.json``, or in ``transforms_train.json`` and files of the other splits.

    It reads what :class:`BlenderSource` does, and besides:

    - lenses: ``camera_model`` with ``k1`` to ``k6``, ``p1``, ``p2`` or ``distortion_params``, of the file or of a frame;
      ``is_fisheye``. See :func:`~lightning_nerf.data.lenses.read_lens`.
    - intrinsics as a 3x3 matrix ``K``.
    - masks in a folder ``masks`` that has the pictures' names, where a frame has no ``mask_path``.
    - ``depth_file_path``, kept in ``Scene.depth_paths``.
    - paths of another machine, resolved by their ends.

    Splits are those of :func:`~lightning_nerf.data.splits.choose_split_files`: files, lists, the frames' ``split``, or
    every ``test_every``-th existing frame by name. The scene is read in units of its own, see :class:`NormalizedSource`;
    ``aabb_scale``, ``scale`` and ``offset``, which place a scene in instant-ngp's cube, have no effect, and nerfstudio's
    ``applied_transform`` is in the poses already.

    Args:
        root: the capture's folder.
        test_every: which frames of one file without other splits are tested, and not trained on.
        holdout_every: validate on training views 0, k, 2k, ..., and do not train on them.
        downscale: shrink pictures by this integer factor, averaging areas.
        n_train, n_val, n_test: at most this many views, evenly spaced. None: all.
        normalize: read the scene in units of its own; False: in those of the files.
    """

    is_capture: ClassVar[bool] = True
    has_up: ClassVar[bool] = True

    def __init__(
        self,
        root: str | Path,
        test_every: int = 8,
        holdout_every: int | None = None,
        downscale: int = 1,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        normalize: bool = True,
    ) -> None:
        check_integer("test_every", test_every, 2)
        check_instance("normalize", normalize, bool)
        super().__init__(
            root, holdout_every=holdout_every, downscale=downscale, n_train=n_train, n_val=n_val, n_test=n_test
        )
        self.held_out_every = test_every
        self.normalize = normalize

    def read_world(self, split: str) -> Scene:
        """The views of a split in the units of the files."""
        return BlenderSource.read(self, split)

    def captured(self) -> CapturedCameras | None:
        """All cameras of the training file."""
        try:
            transforms = self._transforms(self._files().train)
        except MissingFile:  # a mere test needs no training views
            return None
        cameras = camera_tensors(transforms.frames, transforms.intrinsics, transforms.size)
        return CapturedCameras(*cameras, upright=upright_poses(transforms.frames))
