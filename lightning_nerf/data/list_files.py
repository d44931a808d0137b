"""Text files that list the pictures of a split, one a line, as they lie beside COLMAP's reconstructions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import shown

_STEMS = ("{}_image", "{}_images", "{}_list", "{}_names", "{}")
_FOLDERS = ("", "sparse/0", "sparse")
_MAX_BYTES = 16 * 2**20


class ListedSplits(NamedTuple):
    """Names of each split that has a list."""

    names: Mapping[str, frozenset[str]]
    message: str | None = None

    def holds(self, split: str, paths: Sequence[str]) -> bool:
        """Whether a picture with these names is in a split; without a list for "train" it has all that no other has."""
        if split not in self.names:
            return split == "train" and not any(self.holds(other, paths) for other in self.names)
        return any(path in self.names[split] for path in paths)


def read_list_files(root: Path, pictures: Sequence[tuple[str, ...]]) -> ListedSplits:
    """The lists ``train_image.txt``, ``val_image.txt``, ``test.txt`` and the like of a capture.

    Where only validation views are listed, they are the test views, too.

    Args:
        root: the capture's folder; lists may lie in its ``sparse/0``, too.
        pictures: the names of each posed picture, by which lists may have it.

    Raises:
        BadArgument: a list has no posed picture, or one is both trained and tested on.
    """
    files = {split: file for split in ("train", "val", "test") if (file := _file(root, split)) is not None}
    if "val" not in files and "test" not in files:  # one of "train" alone would leave open what is tested
        return ListedSplits({})
    known = {name for names in pictures for name in names}
    names: dict[str, frozenset[str]] = {}
    counts = []
    for split, file in files.items():
        entries = frozenset(_lines(file))
        if not entries & known:
            raise BadArgument(f"{shown(file)}: expected names of posed pictures, one a line, got none of them")
        names[split] = entries
        missing = len(entries - known)
        counts.append(f"{len(entries & known)} in {file.name}" + (f" and {missing} without a pose" if missing else ""))
    message = f"{shown(root)}: its lists say which picture belongs to which split ({', '.join(counts)})"
    if "test" not in names:
        names["test"] = names["val"]
        message += "; no list is of test views, so those of validation are tested"
    listed = ListedSplits(names, message)
    both = [paths[0] for paths in pictures if listed.holds("train", paths) and listed.holds("test", paths)]
    if both:
        raise BadArgument(
            f"{shown(root)}: test views are never trained on, but {shown(both[0])} and {len(both) - 1} more are in both "
            "lists"
        )
    return listed


def _file(root: Path, split: str) -> Path | None:
    paths = (root / folder / (stem.format(split) + ".txt") for folder in _FOLDERS for stem in _STEMS)
    return next((path for path in paths if os.path.isfile(path)), None)


def _lines(file: Path) -> list[str]:
    size = file.stat().st_size
    if size > _MAX_BYTES:
        raise BadArgument(f"{shown(file)}: expected at most {_MAX_BYTES} bytes, got {size}")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
