from __future__ import annotations

from pathlib import Path

import pytest

from lightning_nerf.data.find_files import FileFinder, find_mask


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("image", "files", "expected"),
    [
        ("images/a.jpg", ["masks/a.jpg"], "masks/a.jpg"),
        ("images/a.jpg", ["masks/a.png"], "masks/a.png"),
        ("images/a.jpg", ["masks/a.jpg.png", "masks/a.png"], "masks/a.jpg.png"),
        ("images/left/a.jpg", ["masks/left/a.png", "masks/a.png"], "masks/left/a.png"),
        ("images_4/a.jpg", ["masks/a.png", "masks_4/a.png"], "masks_4/a.png"),
        ("images_4/a.jpg", ["masks/a.png", "masks_4/b.png"], "masks/a.png"),
        ("images/a.jpg", ["masks_4/a.png"], None),
        ("train/r_0.png", ["masks/r_0.png"], None),  # another split may have a picture of this name
        ("train/r_0.png", ["masks/train/r_0.png"], "masks/train/r_0.png"),
        ("a.jpg", ["masks/a.png"], "masks/a.png"),
        ("images/a.b.jpg", ["masks/a.png"], None),
        ("images/a.b.jpg", ["masks/a.b.png"], "masks/a.b.png"),
    ],
)
def test_the_mask_of_a_picture(tmp_path: Path, image: str, files: list[str], expected: str | None) -> None:
    touch(tmp_path, image, *files)
    assert find_mask(tmp_path, tmp_path / image) == (None if expected is None else tmp_path / expected)


@pytest.mark.parametrize(
    ("name", "is_picture", "expected"),
    [
        ("images/a.jpg", True, "images/a.jpg"),
        ("./images/a", True, "images/a.jpg"),
        ("/old/place/images/a.jpg", False, "images/a.jpg"),
        ("/old/place/left/images/a.jpg", False, "left/images/a.jpg"),  # the longest end counts
        ("D:\\old\\images\\a.jpg", False, "images/a.jpg"),
        ("/old/a.jpg", True, "images/a.jpg"),
        ("/old/a.jpg", False, None),
        ("/old/images/b.jpg", True, None),
        ("/", True, None),
        ("b/" * 5000, True, None),
    ],
)
def test_a_path_of_another_machine(tmp_path: Path, name: str, is_picture: bool, expected: str | None) -> None:
    touch(tmp_path, "images/a.jpg", "left/images/a.jpg")
    found = FileFinder(tmp_path).find(name, is_picture)
    assert found == (None if expected is None else tmp_path / expected)
