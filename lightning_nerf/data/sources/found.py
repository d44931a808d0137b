"""A capture whose format is found by looking at its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.checks import BadArgument, MissingFile, check_instance, check_integer
from lightning_nerf.data.json_file import shown
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.source import Source
from lightning_nerf.data.sources.colmap import ColmapSource, find_sparse
from lightning_nerf.data.sources.llff import FILE, LLFFSource, has_columns
from lightning_nerf.data.sources.normalized import NormalizedSource
from lightning_nerf.data.sources.transforms import TransformsSource
from lightning_nerf.scene_box import SceneBox


class _Sign(NamedTuple):
    """What a folder may have, and the format that it is a sign of."""

    format: str
    what: str
    is_in: Callable[[Path], bool]


_SIGNS = (  # in the order in which they count
    _Sign("transforms", "transforms_train.json", lambda root: _has_files(root, "transforms_train.json")),
    _Sign("transforms", "transforms.json", lambda root: _has_files(root, "transforms.json", "transforms_test.json")),
    _Sign("colmap", "a COLMAP model in sparse/0 or sparse", lambda root: find_sparse(root) is not None),
    _Sign("llff", f"{FILE} with 17 columns", lambda root: has_columns(root / FILE)),
)
FORMATS = ("auto", "transforms", "colmap", "llff")


class FoundSource(Source):
    """The source of a capture's folder: its format is the first whose files the folder has.

    The order is ``transforms_train.json``, ``transforms.json``, a COLMAP model, ``poses_bounds.npy`` with 17 columns. What
    was taken is said once. The folder is looked at when the first thing is asked of it.

    Args:
        root: the capture's folder.
        format: "auto", or "transforms", "colmap" or "llff" to take that one.
        test_every, holdout_every, downscale, n_train, n_val, n_test, normalize: of the source, see
            :class:`~lightning_nerf.data.sources.TransformsSource`.
        images_folder: the folder of the pictures, of COLMAP and LLFF only.
        ndc: turn the scene for contraction "ndc", of COLMAP and LLFF only.

    Attributes:
        chosen: the source that reads the folder.

    >>> from lightning_nerf.data.sources import FoundSource
    >>> FoundSource("path/to/fox").name
    'fox'
    """

    def __init__(
        self,
        root: str | Path,
        format: str = "auto",
        test_every: int = 8,
        holdout_every: int | None = None,
        downscale: int = 1,
        images_folder: str | None = None,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        normalize: bool = True,
        ndc: bool = False,
    ) -> None:
        check_instance("root", root, str, os.PathLike)
        if format not in FORMATS:
            raise BadArgument(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
        check_integer("test_every", test_every, 2)
        self.root = Path(os.path.expanduser(root))
        self.format = format
        self.images_folder = images_folder
        self.ndc = ndc
        common = (test_every, holdout_every, downscale)
        counts = (n_train, n_val, n_test, normalize)
        # Each checks the arguments now, and looks at no file.
        self._sources: dict[str, NormalizedSource] = {
            "transforms": TransformsSource(root, *common, *counts),
            "colmap": ColmapSource(root, *common, images_folder, *counts, ndc),
            "llff": LLFFSource(root, *common, images_folder, *counts, ndc),
        }
        self._chosen: NormalizedSource | None = None
        self._to_world: Tensor | None = None  # a checkpoint's

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def chosen(self) -> NormalizedSource:
        """The source that reads the folder."""
        if self._chosen is None:
            format = self._found_format() if self.format == "auto" else self.format
            if self.ndc and format == "transforms":
                raise BadArgument(
                    f"contraction: 'ndc' begins where content does, which files of transforms do not state; take 'l2' for "
                    f"{shown(self.root)}, or format colmap or llff where it has their files"
                )
            self._chosen = self._sources[format]
        return self._chosen

    def box(self) -> SceneBox | None:
        """That of the source."""
        return self.chosen.box()

    def has_test_views(self) -> bool:
        """As the source has it."""
        return self.chosen.has_test_views()

    def check(self) -> None:
        """As the source does."""
        self.chosen.check()

    def times(self, split: str) -> Sequence[float | None] | None:
        """As the source has them."""
        return self.chosen.times(split)

    def read(self, split: str) -> Scene:
        """The views of a split, in the scene's units."""
        return self.chosen.read(split)

    def to_world(self) -> Tensor | None:
        """As of :class:`~lightning_nerf.data.sources.normalized.NormalizedSource`."""
        return self.chosen.to_world() if self._to_world is None else self._to_world

    def use_transform(self, to_world: Tensor) -> None:
        """As of :class:`~lightning_nerf.data.sources.normalized.NormalizedSource`; looks at no file."""
        self._to_world = to_world.detach().double().cpu()
        for source in self._sources.values():
            source.use_transform(self._to_world)

    def _found_format(self) -> str:
        if str(self.root) == "???":  # as recipes have it
            raise BadArgument("root: required, give --data.root=path/to/capture")
        if not os.path.isdir(self.root):
            raise MissingFile(f"root: no folder {self.root}")
        found = [sign for sign in _SIGNS if sign.is_in(self.root)]
        if not found:
            raise MissingFile(
                f"{shown(self.root)}: expected {', '.join(sign.what for sign in _SIGNS[:-1])} or {_SIGNS[-1].what}, found "
                f"none of them; the folder has {_content(self.root)}. Cameras of photos are found by COLMAP or by "
                "`lightning-nerf process`"
            )
        taken = found[0]
        others = [sign for sign in found[1:] if sign.format != taken.format]
        beside = (
            f"; it has {' and '.join(sign.what for sign in others)}, too: data.format={others[0].format}" if others else ""
        )
        rank_zero_info(f"{shown(self.root)}: took {taken.what} (data.format={taken.format}){beside}")
        if self.images_folder is not None and taken.format == "transforms":
            raise BadArgument(f"images_folder: {taken.what} names its pictures itself; leave images_folder out")
        return taken.format


def _has_files(root: Path, *names: str) -> bool:
    return any(os.path.isfile(root / name) for name in names)


def _content(root: Path) -> str:
    names = sorted(shown(entry.name) for entry in os.scandir(root))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing in it"
