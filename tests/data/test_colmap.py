from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.data.sources import ColmapSource
from lightning_nerf.data.sources.colmap import find_sparse, import_pycolmap
from tests.data.captures import CENTER, FOCAL, H, W, project, world_poses, write_colmap, write_pictures

F, C = FOCAL, (W / 2, H / 2)
MODELS: dict[str, tuple[list[float], str]] = {
    "SIMPLE_PINHOLE": ([F, *C], "pinhole"),
    "PINHOLE": ([F, F + 1, *C], "pinhole"),
    "SIMPLE_RADIAL": ([F, *C, 0.1], "opencv"),
    "RADIAL": ([F, *C, 0.1, -0.02], "opencv"),
    "OPENCV": ([F, F + 1, *C, 0.1, -0.02, 0.01, 0.02], "opencv"),
    "FULL_OPENCV": ([F, F + 1, *C, 0.1, -0.02, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06], "opencv"),
    "OPENCV_FISHEYE": ([F, F + 1, *C, 0.1, -0.02, 0.03, 0.04], "fisheye"),
    "SIMPLE_RADIAL_FISHEYE": ([F, *C, 0.1], "fisheye"),
    "RADIAL_FISHEYE": ([F, *C, 0.1, -0.02], "fisheye"),
}


@pytest.mark.parametrize("model", MODELS)
def test_points_are_projected_as_pycolmap_does(tmp_path: Path, model: str) -> None:
    params, lens = MODELS[model]
    source = ColmapSource(write_colmap(tmp_path, model=model, params=params))
    scene = source.read("train")
    assert scene.to_world is not None
    names = ["pinhole"] * 7 if scene.cameras.lens_model is None else [LENS_MODELS[i] for i in scene.cameras.lens_model]
    assert names == [lens] * 7
    points = torch.tensor(CENTER) + torch.tensor([[0.0, 0, 0], [0.5, 0.2, 0.1], [-0.3, 0.4, -0.6], [0.2, -0.7, 0.3]])
    to_scene = torch.linalg.inv(source.to_world())
    there = points.double() @ to_scene[:3, :3].T + to_scene[:3, 3]
    content = import_pycolmap().Reconstruction(str(tmp_path / "sparse/0"))
    for i, name in enumerate(scene.names):
        image = content.find_image_with_name(f"{name}.png")
        expected = np.array([image.project_point(point) for point in points.double().numpy()])
        # float32 poses, positions and focal lengths of some 20 pixels
        np.testing.assert_allclose(project(scene.cameras, i, there).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("sparse", ["sparse/0", "sparse", "sparse/2"])
def test_layouts(tmp_path: Path, sparse: str, text: bool) -> None:
    source = ColmapSource(write_colmap(tmp_path, sparse=sparse, text=text, cameras=3))
    assert [source.read(split).names for split in ("test", "val")] == [["f_0", "f_8"], []]
    scene = source.read("train")
    assert scene.names == [f"f_{i}" for i in range(1, 8)]
    assert scene.cameras.intrinsics[0].tolist() == [F, F, *C]
    raw = ColmapSource(tmp_path, normalize=False).read("test")
    torch.testing.assert_close(raw.cameras.c2w, world_poses(9)[[0, 8]], rtol=0, atol=1e-6)
    assert raw.to_world is None


def test_the_scene_is_around_the_origin_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ColmapSource(write_colmap(tmp_path))
    with caplog.at_level(logging.INFO):
        scenes = [source.read(split) for split in ("train", "test")]
    assert caplog.text.count("The scene's origin is (3, -2, 5) of its files") == 1
    assert source.box().aabb.tolist() == [[-1.0] * 3, [1.0] * 3]
    for scene in scenes:
        torch.testing.assert_close(scene.cameras.c2w[:, :, 3].norm(dim=-1), torch.ones(scene.n_views), rtol=0, atol=1e-3)


def test_pictures_without_a_pose_or_a_file_are_left_out_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_colmap(tmp_path, n=9, n_posed=6)
    (root / "images/f_2.png").unlink()
    source = ColmapSource(root)
    with (
        pytest.warns(UserWarning, match="skipped 1 of 6 posed pictures without a file, e.g. f_2.png"),
        caplog.at_level(logging.INFO),
    ):
        assert source.read("train").names == ["f_1", "f_3", "f_4", "f_5"]
    assert "3 pictures have no pose" in caplog.text
    for path in (root / "images").iterdir():
        path.rename(path.with_name(path.name.replace("f_", "other_")))
    with pytest.raises(FileNotFoundError, match="none of its posed pictures is in"):
        ColmapSource(root).read("train")


@pytest.mark.parametrize(
    ("folders", "options", "expected"),
    [
        (["images", "images_2"], {"downscale": 2}, ("images_2", 2)),
        (["images", "images_2"], {"downscale": 4}, ("images_2", 4)),
        (["images"], {"downscale": 2}, ("images", 2)),
        (["images", "images_4"], {}, ("images", 1)),
        (["images_4"], {}, ("images_4", 4)),
        (["images", "thumbs"], {"images_folder": "thumbs"}, ("thumbs", 4)),
    ],
)
def test_intrinsics_follow_the_pictures_of_a_folder(
    tmp_path: Path, folders: list[str], options: dict[str, Any], expected: tuple[str, int]
) -> None:
    root = write_colmap(tmp_path, images=folders[0], size=(H // 4, W // 4) if folders[0] == "images_4" else (H, W))
    for folder in folders[1:]:
        factor = 2 if folder == "images_2" else 4
        write_pictures(root / folder, [f"f_{i}.png" for i in range(9)], H // factor, W // factor)
    source = ColmapSource(root, **options)
    _, factor = expected
    scene = source.read("train")
    assert scene.cameras.size[0].tolist() == [W // factor, H // factor]
    assert scene.cameras.intrinsics[0].tolist() == [F / factor, F / factor, C[0] / factor, C[1] / factor]
    assert source._folder().path.name == expected[0]


def test_pictures_that_were_numbered_anew_are_matched_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_colmap(tmp_path)
    write_pictures(root / "images_2", [f"image{i:03d}.png" for i in range(9)], H // 2, W // 2)
    with caplog.at_level(logging.INFO):
        scene = ColmapSource(root, downscale=2, normalize=False).read("test")
    assert scene.names == ["image000", "image008"]
    assert "matched them in order, image000.png for f_0.png" in caplog.text
    (root / "images_2/image008.png").rename(root / "images_2/f_8.jpg")  # now one has its name
    with pytest.warns(UserWarning, match="skipped 8 of 9"):
        assert ColmapSource(root, downscale=2).read("test").names == ["f_8"]


@pytest.mark.parametrize(
    ("lists", "train", "val", "test"),
    [
        ({"train_image.txt": "1 2", "val_image.txt": "0 3"}, "1 2", "0 3", "0 3"),
        ({"sparse/0/test.txt": "4 5"}, "0 1 2 3 6 7 8", "", "4 5"),
        ({"train_list.txt": "0 1", "test_list.txt": "2", "val_list.txt": "3"}, "0 1", "3", "2"),
        ({"train.txt": "1 2"}, "1 2 3 4 5 6 7", "", "0 8"),
    ],
)
def test_lists_beside_the_model_say_the_splits(
    tmp_path: Path, lists: dict[str, str], train: str, val: str, test: str
) -> None:
    root = write_colmap(tmp_path)
    for i, (name, views) in enumerate(lists.items()):
        end = ".png" if i % 2 == 0 else ""  # with the suffix, or without
        (root / name).write_text("".join(f"f_{view}{end}\n" for view in views.split()))
    source = ColmapSource(root)
    assert [" ".join(n[2:] for n in source.read(s).names) for s in ("train", "val", "test")] == [train, val, test]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"test.txt": "a\nb\n"}, "test.txt: expected names of posed pictures, one a line, got none of them"),
        ({"train.txt": "f_0.png\n", "test.txt": "f_0.png\n"}, "f_0.png and 0 more are in both lists"),
    ],
)
def test_lists_that_make_no_sense_are_named(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    root = write_colmap(tmp_path)
    for name, text in lists.items():
        (root / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        ColmapSource(root).read("train")


def test_masks_of_colmap(tmp_path: Path) -> None:
    root = write_colmap(tmp_path)
    import imageio.v3 as iio

    mask = np.zeros((H, W), np.uint8)
    mask[:, :3] = 255
    (root / "masks").mkdir()
    iio.imwrite(root / "masks/f_0.png.png", mask)
    iio.imwrite(root / "masks/f_8.png", mask)
    scene = ColmapSource(root).read("test")
    assert scene.images.drawable is not None
    assert len(scene.images.drawable) == 2 * 3 * H


def test_other_camera_models_are_refused_by_name(tmp_path: Path) -> None:
    source = ColmapSource(write_colmap(tmp_path, model="FOV", params=[F, F, *C, 0.1]))
    with pytest.raises(ValueError, match="camera 1: camera model 'FOV' is not supported, expected one of PINHOLE"):
        source.read("train")


def test_validation_views_can_be_held_out_and_numbers_limited(tmp_path: Path) -> None:
    source = ColmapSource(write_colmap(tmp_path), holdout_every=3, n_train=2, test_every=4)
    assert [source.read(split).names for split in ("train", "val", "test")] == [
        ["f_2", "f_6"],
        ["f_1", "f_5"],
        ["f_0", "f_4", "f_8"],
    ]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"needs pycolmap >= 4.2 .*pip install 'lightning-nerf\[captures\]'"),
        ({"SceneManager": object}, "got version unknown of .*: pip uninstall pycolmap, then pip install"),
        ({"Reconstruction": object, "__version__": "0.6.1"}, "got version 0.6.1 of"),
        ({"Reconstruction": object, "__version__": "4.1.1"}, "got version 4.1.1 of"),
    ],
)
def test_no_pycolmap_or_an_old_one_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: dict[str, Any] | None, message: str
) -> None:
    fake = None if module is None else types.ModuleType("pycolmap")
    if fake is not None and module is not None:
        vars(fake).update(module)
    monkeypatch.setitem(sys.modules, "pycolmap", fake)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        import_pycolmap()


def test_folders_without_a_model_or_pictures_are_named(tmp_path: Path) -> None:
    assert find_sparse(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no folder images or images_N; give images_folder"):
        ColmapSource(tmp_path).read("train")
    write_pictures(tmp_path / "images", ["a.png"])
    with pytest.raises(FileNotFoundError, match="no COLMAP model in sparse/0 or sparse"):
        ColmapSource(tmp_path).read("train")
    with pytest.raises(FileNotFoundError, match=r"images_folder: no folder .*; there are images"):
        ColmapSource(tmp_path, images_folder="photos").read("train")
    with pytest.raises(FileNotFoundError, match="root: no folder"):
        ColmapSource(tmp_path / "none").read("train")


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    root = write_colmap(tmp_path, text=True)
    (root / "sparse/0/cameras.txt").write_text("1 PINHOLE what\n")
    with pytest.raises(ValueError, match="sparse/0: pycolmap cannot read the model"):
        ColmapSource(root).read("train")
