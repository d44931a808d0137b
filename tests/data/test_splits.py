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
