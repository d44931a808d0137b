from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lightning_nerf.data.blender import BlenderData
from lightning_nerf.data.frames import Transforms
from lightning_nerf.data.splits import choose_split_files
from tests.data.test_blender import write_split


def capture(root: Path, *splits: str, n: int = 3) -> Path:
    """A scene with these splits; "": everything in transforms.json."""
    for split in splits:
        write_split(root, split or "all", n)
    if "" in splits:
        (root / "transforms_all.json").rename(root / "transforms.json")
    return root


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "val", "test"], ["transforms_train.json", "transforms_val.json", "transforms_test.json"]),
        (["train", "test"], ["transforms_train.json", None, "transforms_test.json"]),
        (["", "test"], ["transforms.json", None, "transforms_test.json"]),
        (["", "train", "test"], ["transforms_train.json", None, "transforms_test.json"]),
    ],
)
def test_a_file_per_split(tmp_path: Path, splits: list[str], expected: list[str | None]) -> None:
    files = choose_split_files(capture(tmp_path, *splits))
    assert [path and path.name for path in (files.train, files.val, files.test)] == expected
    assert files.test_every is None
    assert files.message is None
    frames = Transforms(files.train).frames
    assert files.frames("train", frames) == frames


@pytest.mark.parametrize("beside", [[], ["val"]])
def test_of_one_file_every_eighth_frame_by_name_is_tested(tmp_path: Path, beside: list[str]) -> None:
    root = capture(tmp_path, "", *beside, n=20)
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    content["frames"].reverse()
    del content["frames"][3]
    path.write_text(json.dumps(content))
    files = choose_split_files(root)
    assert (files.train, files.test) == (path, path)
    assert (files.val is not None) == bool(beside)
    assert files.message is not None
    assert "every 8th frame by name is tested and not trained on. To choose others, split it" in files.message
    frames = Transforms(path).frames
    # Those of r_0, r_1, r_10, ..., r_19, r_2, ..., without r_16.
    assert [frame.image.stem for frame in files.frames("test", frames)] == ["r_0", "r_17", "r_7"]
    trained = {frame.image.stem for frame in files.frames("train", frames)}
    assert trained == {f"r_{i}" for i in range(20)} - {"r_0", "r_17", "r_7", "r_16"}


def test_one_file_is_trained_and_tested_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = BlenderData(capture(tmp_path, "", n=17))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert "every 8th frame by name is tested" in caplog.text
    assert len(data.scene("train").names) == 14
    assert data.scene("test").names == ["r_0", "r_16", "r_9"]
    held_out = BlenderData(tmp_path, holdout_every=7)
    assert [len(held_out.scene(split).names) for split in ("train", "val", "test")] == [12, 2, 3]
    assert not set(held_out.scene("train").names) & {*held_out.scene("val").names, *held_out.scene("test").names}


@pytest.mark.parametrize("content", [None, "", '{"frames": []}', '{"camera_angle_x": 0.7}'])
@pytest.mark.parametrize("splits", [["train"], ["train", "val"]])
def test_a_missing_or_empty_test_file_is_told_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None, splits: list[str]
) -> None:
    root = capture(tmp_path, *splits)
    if content is not None:
        (root / "transforms_test.json").write_text(content)
    files = choose_split_files(root)
    assert files.test is None
    assert files.message is not None
    remedy = "test_split=val tests the views of" if "val" in splits else "rename transforms_train.json to transforms.json"
    assert remedy in files.message
    data = BlenderData(root)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert "transforms_test.json: no view can be tested; " in caplog.text
    assert data.scene("train").names == ["r_0", "r_1", "r_2"]
    with pytest.raises(FileNotFoundError, match=f"transforms_test.json: no view can be tested; .*{remedy}"):
        data.setup("test")


def test_files_that_are_asked_for_must_exist_and_be_sound(tmp_path: Path) -> None:
    root = capture(tmp_path, "train")
    for split in ("val", "test"):
        with pytest.raises(FileNotFoundError, match=r"no file .*transforms_mine.json; its folder has transforms_tr"):
            choose_split_files(root, **{split: "mine"})
    with pytest.raises(ValueError, match="test views are never trained on"):
        choose_split_files(root, train="a", test="a")
    (root / "transforms_test.json").write_text("[")
    with pytest.raises(ValueError, match=r"transforms_test.json: cannot be read as JSON"):
        choose_split_files(root)


def test_test_views_need_no_training_file(tmp_path: Path) -> None:
    assert len(BlenderData(capture(tmp_path, "test")).scene("test").names) == 3
    with pytest.raises(FileNotFoundError, match=r"no file .*transforms_train.json; its folder has transforms_test.json"):
        BlenderData(tmp_path).scene("train")


def listed(root: Path, n: int = 6, key: str = "", **lists: object) -> Path:
    """A scene of n frames in transforms.json (or of another split), with ``{split}_filenames``."""
    write_split(root, key or "all", n, change=lambda content: content.update(**lists))
    if not key:
        (root / "transforms_all.json").rename(root / "transforms.json")
    return root


TWO = ["./all/r_0.png", "all/r_4"]  # with and without the suffix, and another spelling of the folder


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": ["all/r_1.png", "all/r_2"], "val": ["all/r_3"], "test": TWO}, ([1, 2], [3], [0, 4])),
        ({"train": ["all/r_1"], "val": TWO, "test": TWO}, ([1], [0, 4], [0, 4])),
        ({"train": ["all/r_1"], "val": [], "test": TWO}, ([1], [], [0, 4])),
        ({"test": TWO}, ([1, 2, 3, 5], [], [0, 4])),
        ({"val": ["all/r_5"], "test": TWO}, ([1, 2, 3], [5], [0, 4])),
    ],
)
def test_lists_of_a_file_are_its_splits(
    tmp_path: Path, lists: dict[str, list[str]], expected: tuple[list[int], ...], caplog: pytest.LogCaptureFixture
) -> None:
    data = BlenderData(listed(tmp_path, **{f"{split}_filenames": names for split, names in lists.items()}))
    with caplog.at_level(logging.INFO):
        data.setup()
    for split, numbers in zip(("train", "val", "test"), expected, strict=True):
        assert data.scene(split).names == [f"r_{i}" for i in numbers]
    assert "transforms.json: its lists say which of its 6 frames belong to which split (" in caplog.text
    assert "2 in test_filenames)" in caplog.text
    assert "no view can be tested" not in caplog.text
    held_out = BlenderData(tmp_path, holdout_every=2)
    assert held_out.scene("val").names == [f"r_{i}" for i in expected[0][::2]]


def test_absolute_paths_in_lists_are_the_same_pictures(tmp_path: Path) -> None:
    data = BlenderData(listed(tmp_path, test_filenames=[str(tmp_path / "all/r_2.png")]))
    assert data.scene("test").names == ["r_2"]


def test_a_split_without_a_list_may_have_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = listed(tmp_path, train_filenames=["all/r_1", "all/r_2"], test_filenames=[])
    with caplog.at_level(logging.INFO):
        assert BlenderData(root).scene("train").names == ["r_1", "r_2"]
    assert "no view can be tested: no test_filenames names one, and there is no file " in caplog.text
    with pytest.raises(FileNotFoundError, match="no view can be tested: no test_filenames names one"):
        BlenderData(root).scene("test")
    write_split(root, "test", 2)
    assert BlenderData(root).scene("test").names == ["r_0", "r_1"]


def test_lists_of_a_file_beside_which_there_is_a_training_file_are_not_read(tmp_path: Path) -> None:
    root = listed(tmp_path, test_filenames=TWO)
    write_split(root, "train", 3)
    write_split(root, "test", 2)
    assert [len(BlenderData(root).scene(split).names) for split in ("train", "test")] == [3, 2]


def test_a_listed_picture_that_is_missing_is_left_out(tmp_path: Path) -> None:
    root = listed(tmp_path, train_filenames=["all/r_1", "all/r_2.png"], test_filenames=TWO)
    (root / "all/r_2.png").unlink()
    with pytest.warns(UserWarning, match="skipped 1 of 6 frames"):
        assert BlenderData(root).scene("train").names == ["r_1"]


def test_a_list_that_validates_on_training_views_is_warned_of(tmp_path: Path) -> None:
    root = listed(tmp_path, train_filenames=TWO, val_filenames=["all/r_4", "all/r_5"])
    with pytest.warns(UserWarning, match=r"transforms.json: train_filenames and val_filenames both have .*/r_4.png: the"):
        assert BlenderData(root).scene("val").names == ["r_4", "r_5"]


@pytest.mark.parametrize(
    ("lists", "beside", "message"),
    [
        ({"train_filenames": TWO, "test_filenames": ["all/r_4.png", "all/r_0.png", "all/r_5"]}, None, None),
        ({"train_filenames": ["all/r_0"], "test_filenames": ["all/r_0"]}, None,
         "train_filenames, test_filenames: test views are never trained on, but both lists have .*all/r_0"),
        ({"train_filenames": ["all/r_0"], "test_filenames": ["all/r_0.png"]}, None,
         "train_filenames, test_filenames: test views are never trained on, but both lists have .*all/r_0"),
        ({"test_filenames": ["all/r_9"]}, None, "test_filenames: expected the file_path .* got all/r_9, of no frame"),
        ({"val_filenames": ["r_0", "r_1"]}, None, "val_filenames: expected the file_path .* got r_0 and 1 more"),
        ({"val_filenames": ["all/r_0.jpg"]}, None, "val_filenames: expected the file_path .* got all/r_0.jpg, of no frame"),
        ({"train_filenames": []}, None, "train_filenames: expected one picture or more, got an empty list"),
        ({"test_filenames": "all/r_0"}, None, "test_filenames: expected a list of paths, got 'all/r_0'"),
        ({"test_filenames": [0]}, None, r"test_filenames: expected a list of paths, got \[0\]"),
        ({"test_filenames": TWO}, "test", r"test_filenames: expected one place .* this list and transforms_test.json"),
        ({"val_filenames": TWO}, "val", r"val_filenames: expected one place .* this list and transforms_val.json"),
    ],
)  # fmt: skip
def test_lists_that_contradict_are_refused_by_name(
    tmp_path: Path, lists: dict[str, object], beside: str | None, message: str | None
) -> None:
    root = listed(tmp_path, **lists)
    if beside is not None:
        write_split(root, beside, 2)
    message = message or "test views are never trained on"
    with pytest.raises(ValueError, match=rf"transforms.json: .*{message}"):
        BlenderData(root).setup("fit")


def test_lists_elsewhere_than_in_the_training_file_are_refused(tmp_path: Path) -> None:
    root = listed(capture(tmp_path, "train"), 3, "test", test_filenames=["test/r_0"])
    with pytest.raises(ValueError, match=r"transforms_test.json: lists of splits are honored in the training file only"):
        BlenderData(root).scene("test")
