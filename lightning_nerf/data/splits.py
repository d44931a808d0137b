"""Which camera files the splits of a capture are read from, decided before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.data.frames import SPLIT_NAMES, Frame
from lightning_nerf.data.json_file import read_json_object, shown
from lightning_nerf.data.split_lists import LISTS, SplitLists, described, read_split_lists

TEST_EVERY = 8  # of a capture in one file; the LLFF papers' choice


class SplitFiles(NamedTuple):
    """The camera file of each split."""

    train: Path
    val: Path | None  # None: no validation views
    test: Path | None  # None: no test views
    test_every: int | None = None  # every k-th frame by name of the one file is tested, and not trained on
    message: str | None = None  # what the user should know before the first step
    lists: SplitLists | None = None  # of the training file: which of its frames belong to which split
    by_keys: bool = False  # the frames of the one file say so themselves

    def frames(self, split: str, frames: Sequence[Frame]) -> list[Frame]:
        """Those of the split's file that belong to the split; in the order of their names where a rule divides one file."""
        if self.lists is not None and self._file(split) == self.train:
            return [frame for frame in frames if self.lists.holds(split, frame.paths)]
        if self.by_keys and self._file(split) == self.train:
            if split == "test" and not any(frame.split == "test" for frame in frames):
                split = "val"
            return [frame for frame in frames if (frame.split or "train") == split]
        if self.test_every is None or split == "val":
            return list(frames)
        by_name = sorted(frames, key=lambda frame: str(frame.image))
        if split == "test":
            return by_name[:: self.test_every]
        return [frame for i, frame in enumerate(by_name) if i % self.test_every]

    def _file(self, split: str) -> Path | None:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def choose_split_files(
    root: Path, train: str = "train", val: str = "val", test: str = "test", test_every: int = TEST_EVERY
) -> SplitFiles:
    """Decide which ``transforms_*.json`` each split reads, without looking for a picture.

    Files and lists of the user's count before the rule:

    1. The splits are ``transforms_{train}.json``, ``transforms_{val}.json`` and ``transforms_{test}.json``. If there is a
       ``transforms.json`` but no ``transforms_train.json``, that is the training file.
    2. If the training file has nerfstudio's lists (``train_filenames``, ``val_filenames``, ``test_filenames``), each split
       has the frames of its list. Without ``train_filenames`` what no list names is trained on; a list that is empty or not
       there leaves its split to a file of its own. A frame in no list is not used.
    3. If the frames of a ``transforms.json`` have a ``split`` ("train", "val" or "test"; "train" where one has none), that
       counts. Without one for "test" those for "val" are tested, too.
    4. If there are neither lists nor a test file, every 8th frame of a ``transforms.json`` is tested. A test file that is
       missing or has no frames leaves other captures without test views.

    The last three come with a message.

    Args:
        root: the folder of the capture.
        train, val, test: names of the splits' files. Files of the default names for val and test may be missing.
        test_every: which frames of a ``transforms.json`` are tested, another number than 8.

    Raises:
        FileNotFoundError: no file of a name that is not the default. A missing training file is noticed when it is read.
        ValueError: ``train`` and ``test`` are one file; the test file or a list is malformed; a picture is listed both
            to train and to test on; a split has both a list and a file of its own.
    """
    if train == test:
        raise BadArgument(f"train_split, test_split: both are {train!r}; test views are never trained on")
    train_file, val_file, test_file = (root / f"transforms_{name}.json" for name in (train, val, test))
    for name, default, file in ((val, "val", val_file), (test, "test", test_file)):
        if name != default and not os.path.isfile(file):
            read_json_object(file)  # its error names the files that there are
    whole = root / "transforms.json"
    if train == "train" and not os.path.isfile(train_file) and os.path.isfile(whole):
        train_file = whole
    existing_val = val_file if os.path.isfile(val_file) else None
    content = _content(train_file)
    if (lists := read_split_lists(train_file, content)) is not None:
        return _by_lists(SplitFiles(train_file, existing_val, test_file, lists=lists), content.get("frames"))
    if _has_frames(test_file):
        return SplitFiles(train_file, existing_val, test_file)
    if train_file == whole:
        if (keys := _split_keys(content)) - {"train"}:
            has_val = "val" in keys and existing_val is None
            message = f"{shown(whole)}: the split of each frame is the one that it states"
            return SplitFiles(whole, whole if has_val else existing_val, whole, message=message, by_keys=True)
        message = (
            f"{shown(root)} has one file for all splits, {whole.name}: every {test_every}th frame by name is tested and "
            "not trained on. To choose others, split it into transforms_train.json and transforms_test.json."
        )
        return SplitFiles(whole, existing_val, whole, test_every, message)
    state = "no frames in" if os.path.isfile(test_file) else "no file"
    remedy = f"to test every {TEST_EVERY}th training view, and not train on it, rename {train_file.name} to {whole.name}"
    if existing_val is not None:
        remedy = f"test_split={val} tests the views of {val_file.name}"
    return SplitFiles(train_file, existing_val, None, None, f"{state} {shown(test_file)}: no view can be tested; {remedy}")


def _by_lists(files: SplitFiles, frames: object) -> SplitFiles:
    """The files of a capture whose training file has lists, given those that it would have without."""
    lists, whole = files.lists, files.train
    assert lists is not None
    own = {"val": files.val, "test": files.test if files.test is not None and _has_frames(files.test) else None}
    for split, file in own.items():
        if lists.paths.get(split):
            if file is not None:
                raise BadArgument(
                    f"{lists.where}: {LISTS[split]}: expected one place that says what the {split} views are, got this "
                    f"list and {shown(file.name)}; empty the list or move the file away"
                )
            own[split] = whole
    message = described(lists, frames if isinstance(frames, list) else [])
    if own["test"] is None:
        message += f"; no view can be tested: no {LISTS['test']} names one, and there is no file {shown(files.test)}"
    return files._replace(**own, message=message)


def _split_keys(content: dict[str, object]) -> set[str]:
    """The splits that the frames of a file state."""
    frames = content.get("frames")
    stated = [frame.get("split") for frame in frames if isinstance(frame, dict)] if isinstance(frames, list) else []
    return {SPLIT_NAMES[name] for name in stated if isinstance(name, str) and name in SPLIT_NAMES}


def _content(path: Path) -> dict[str, object]:
    """What a file holds; nothing where it cannot be read, which is said when its views are: a test may do without them."""
    try:
        return read_json_object(path)
    except (BadArgument, MissingFile):
        return {}


def _has_frames(path: Path) -> bool:
    if not os.path.isfile(path) or path.stat().st_size == 0:
        return False
    return read_json_object(path).get("frames") not in (None, [])
