from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf import CaptureData
from lightning_nerf.data.sources import ColmapSource, FoundSource, LLFFSource, TransformsSource
from tests.data.captures import write_colmap, write_llff, write_pictures, write_transforms
from tests.scenes import tiny_module, trainer

LAYOUTS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "transforms_train.json": (lambda root: write_transforms(root, name="transforms_train.json"),),
    "transforms.json": (write_transforms,),
    "colmap": (write_colmap,),
    "llff": (write_llff,),
    "llff of other columns beside colmap": (write_colmap, lambda root: write_llff(root, columns=14)),
    "all": (write_transforms, write_colmap, write_llff),
    "colmap and llff": (write_colmap, write_llff),
}
TAKEN = {
    "transforms_train.json": (TransformsSource, "took transforms_train.json (data.format=transforms)"),
    "transforms.json": (TransformsSource, "took transforms.json (data.format=transforms)"),
    "colmap": (ColmapSource, "took a COLMAP model in sparse/0 or sparse (data.format=colmap)"),
    "llff": (LLFFSource, "took poses_bounds.npy with 17 columns (data.format=llff)"),
    "llff of other columns beside colmap": (ColmapSource, "took a COLMAP model in sparse/0 or sparse (data.format=colmap)"),
    "all": (TransformsSource, "took transforms.json (data.format=transforms); it has a COLMAP model in sparse/0 or sparse"),
    "colmap and llff": (ColmapSource, "; it has poses_bounds.npy with 17 columns, too: data.format=llff"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_format_is_found_and_told_once(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    for write in LAYOUTS[layout]:
        write(tmp_path)
    data = CaptureData(tmp_path)
    kind, message = TAKEN[layout]
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert caplog.text.count(message) == 1
    assert caplog.text.count("The scene's origin is") == 1
    assert isinstance(data.source, FoundSource)
    assert type(data.source.chosen) is kind
    assert data.scene_name == tmp_path.name
    assert data.scene_box.aabb.tolist() == [[-1.0] * 3, [1.0] * 3]
    assert data.scene_box.contraction == "l2"


@pytest.mark.parametrize(
    ("format", "kind"), [("transforms", TransformsSource), ("colmap", ColmapSource), ("llff", LLFFSource)]
)
def test_a_format_that_is_asked_for_is_taken(tmp_path: Path, format: str, kind: type) -> None:
    for write in LAYOUTS["all"]:
        write(tmp_path)
    source = FoundSource(tmp_path, format)
    assert type(source.chosen) is kind
    assert source.read("test").names == ["f_0", "f_8"]


@pytest.mark.parametrize("content", [None, "notes.txt", "other columns"])
def test_a_folder_of_nothing_known_says_what_was_looked_for(tmp_path: Path, content: str | None) -> None:
    found = "nothing in it"
    if content == "notes.txt":
        (tmp_path / content).touch()
        found = "notes.txt"
    if content == "other columns":
        write_llff(tmp_path, columns=14)
        found = "images, poses_bounds.npy"
    expected = (
        "expected transforms_train.json, transforms.json, a COLMAP model in sparse/0 or sparse or poses_bounds.npy with 17 "
        f"columns, found none of them; the folder has {found}"
    )
    with pytest.raises(FileNotFoundError) as caught:
        CaptureData(tmp_path).setup("fit")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "ply"}, "format: expected one of auto, transforms, colmap, llff, got 'ply'"),
        ({"test_every": 1}, "test_every: expected an integer >= 2, got 1"),
        ({"holdout_every": 1}, "holdout_every: expected an integer >= 2, got 1"),
        ({"downscale": 0}, "downscale: expected an integer >= 1, got 0"),
        ({"n_test": 0}, "n_test: expected an integer >= 1, got 0"),
        ({"normalize": 1}, "normalize: expected bool"),
        ({"images_folder": 3}, "images_folder: expected str"),
    ],
)
def test_bad_arguments_are_named_before_a_file_is_looked_at(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptureData("path/to/nothing", **options)


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root: no folder"):
        CaptureData(tmp_path / "none").setup("fit")
    with pytest.raises(ValueError, match=r"root: required, give --data.root"):
        CaptureData("???").setup("fit")
    write_transforms(tmp_path)
    with pytest.raises(ValueError, match=r"images_folder: transforms.json names its pictures itself"):
        CaptureData(tmp_path, images_folder="images").setup("fit")


def test_without_units_of_its_own_the_box_is_around_what_the_cameras_see(tmp_path: Path) -> None:
    data = CaptureData(write_transforms(tmp_path), normalize=False, contraction="none")
    torch.testing.assert_close(data.scene_box.aabb.mean(0), torch.tensor([3.0, -2.0, 5.0]), rtol=0, atol=1e-2)
    assert data.scene("train").to_world is None
    assert data.state_dict() == {}
    data.load_state_dict({})


def test_a_checkpoint_keeps_the_transform_and_a_resumed_fit_takes_it(tmp_path: Path) -> None:
    root = write_transforms(tmp_path / "capture")
    data, path = CaptureData(root), tmp_path / "x.ckpt"
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(tiny_module(), data)
    fit.save_checkpoint(path)
    expected = data.to_world()
    assert expected is not None
    (root / "transforms.json").unlink()
    write_transforms(root, n=5)  # another set of cameras, of another transform
    assert not torch.equal(CaptureData(root).to_world(), expected)  # type: ignore[arg-type]
    loaded = CaptureData.load_from_checkpoint(path)
    assert torch.equal(loaded.to_world(), expected)  # type: ignore[arg-type]
    resumed = CaptureData(root)
    trainer(tmp_path, max_steps=3).fit(tiny_module(), resumed, ckpt_path=path, weights_only=True)
    for each in (loaded, resumed):
        assert torch.equal(each.scene("train").to_world, expected.float())  # type: ignore[arg-type]
    (root / "transforms.json").unlink()
    assert torch.equal(CaptureData.load_from_checkpoint(path).to_world(), expected)  # type: ignore[arg-type]


def test_a_capture_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["w"], content["h"], content["cx"], content["cy"]

    root = write_transforms(tmp_path, change=change)
    write_pictures(root / "images", ["f_3.png"], 5, 7)
    scene = CaptureData(root).scene("train")
    assert scene.cameras.size[2].tolist() == [7, 5]
    assert scene.picture(2).shape == (5, 7, 3)
