"""nerfstudio's lists of the splits' pictures, ``train_filenames``, ``val_filenames`` and ``test_filenames``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import shorten, shown

LISTS = {split: f"{split}_filenames" for split in ("train", "val", "test")}


class SplitLists(NamedTuple):
    """Which pictures of a file belong to which split. Paths are absolute or from the working folder, normalized."""

    where: str  # the file, for errors
    paths: Mapping[
        str, Mapping[str, str]
    ]  # of each split that has a list: the path of each entry, and the entry as written

    def holds(self, split: str, paths: Iterable[str]) -> bool:
        """Whether a frame with these names for its picture is in the split.

        Without ``train_filenames`` all frames that no other list names are trained on.
        """
        if split == "train" and split not in self.paths:
            return not any(self.holds(other, paths) for other in self.paths)
        listed = self.paths.get(split, {})
        return any(path in listed for path in paths)

    def check(self, frames: Sequence[tuple[str, ...]], missing: Iterable[str]) -> None:
        """Refuse an entry that is the picture of no frame, and a frame that is both trained and tested on.

        Args:
            frames: the names of each frame's picture.
            missing: those of frames without a file.
        """
        known = set(missing).union(*frames)
        for split, entries in self.paths.items():
            strangers = [entry for path, entry in entries.items() if path not in known]
            if strangers:
                raise BadArgument(
                    f"{self.where}: {LISTS[split]}: expected the file_path of a frame, got {_first(strangers)}, of no frame"
                )
        trained_on = [paths for paths in frames if self.holds("train", paths)]
        if both := [paths[-1] for paths in trained_on if self.holds("test", paths)]:
            raise BadArgument(
                f"{self.where}: {LISTS['train']}, {LISTS['test']}: test views are never trained on, but both lists have "
                f"{_first(both)}"
            )
        if both := [paths[-1] for paths in trained_on if self.holds("val", paths)]:
            rank_zero_warn(
                f"{self.where}: {LISTS['train']} and {LISTS['val']} both have {_first(both)}: the score of validation is "
                "then not one of views that were not trained on"
            )


def read_split_lists(path: Path, content: Mapping[str, Any]) -> SplitLists | None:
    """The lists that a camera file has; None: it has none.

    Args:
        path: the file, for errors and as the start of relative paths.
        content: what it holds.

    Raises:
        ValueError: a list is malformed, or nothing is trained on.
    """
    where, paths = shown(path), dict[str, dict[str, str]]()
    for split, key in LISTS.items():
        names = content.get(key)
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise BadArgument(f"{where}: {key}: expected a list of paths, got {shorten(names)}")
        paths[split] = {listed_path(path.parent, name): name for name in names}
    if not paths:
        return None
    if paths.get("train") == {}:
        raise BadArgument(f"{where}: {LISTS['train']}: expected one picture or more, got an empty list")
    return SplitLists(where, paths)


def listed_path(folder: Path, name: str) -> str:
    """A name as paths of lists and frames are compared."""
    return os.path.normpath(os.path.join(folder, name))


def described(lists: SplitLists, frames: Sequence[Any]) -> str:
    """How many views each split has by the lists, in words for the user."""
    counts = ", ".join(f"{len(entries)} in {LISTS[split]}" for split, entries in lists.paths.items())
    return f"{lists.where}: its lists say which of its {len(frames)} frames belong to which split ({counts})"


def _first(names: Sequence[str]) -> str:
    return shown(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
