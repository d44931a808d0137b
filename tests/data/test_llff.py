from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_nerf.data.sources import LLFFSource
from tests.data.captures import FOCAL, H, W, world_poses, write_llff, write_pictures


def test_poses_intrinsics_and_bounds(tmp_path: Path) -> None:
    scene = LLFFSource(write_llff(tmp_path), normalize=False).read("test")
    assert scene.names == ["f_0", "f_8"]
    torch.testing.assert_close(scene.cameras.c2w, world_poses(9)[[0, 8]], rtol=0, atol=0)
    assert scene.cameras.intrinsics[0].tolist() == [FOCAL, FOCAL, W / 2, H / 2]
    corner = math.sqrt(1 + (W**2 + H**2) / (2 * FOCAL) ** 2)
    assert scene.cameras.bounds is not None
    assert scene.cameras.bounds[1].tolist() == pytest.approx([1.5, 8 * corner])


def test_smaller_pictures_and_units_scale_what_is_read(tmp_path: Path) -> None:
    source = LLFFSource(write_llff(tmp_path, images="images_4", scale=4))
    scene = source.read("train")
    assert scene.cameras.intrinsics[0].tolist() == [FOCAL, FOCAL, W / 2, H / 2]
    torch.testing.assert_close(scene.cameras.c2w[:, :, 3].norm(dim=-1), torch.ones(7), rtol=0, atol=1e-3)
    assert scene.cameras.bounds is not None
    assert float(scene.cameras.bounds[0, 0]) == pytest.approx(1.5 / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": 14}, r"poses_bounds.npy: expected 17 columns .*, got the shape \[9, 14\]"),
        ({"row": (3, 15, 7.0)}, r"frame 3 \(f_3.png\): expected height, width, focal length > 0 and 0 < near < far"),
        ({"row": (3, 0, math.nan)}, "expected finite numbers, got nan"),
        ({"pictures": 1}, "expected a row for each of the 10 pictures of .*images, got 9"),
        ({"text": "no array"}, "poses_bounds.npy: cannot be read as an array"),
    ],
)
def test_files_that_make_no_sense_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = write_llff(tmp_path, columns=change.get("columns", 17))
    path = root / "poses_bounds.npy"
    if "row" in change:
        rows = np.load(path)
        i, j, value = change["row"]
        rows[i, j] = value
        np.save(path, rows)
    if "pictures" in change:
        write_pictures(root / "images", ["more.png"])
    if "text" in change:
        path.write_text(change["text"])
    with pytest.raises(ValueError, match=message):
        LLFFSource(root).read("train")
