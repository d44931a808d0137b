"""The seam to pycolmap, on tiny pictures and on matches that pycolmap makes up."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.colmap import Colmap, load
from lightning_nerf.process.options import Options
from lightning_nerf.process.transforms import camera_to_world


def ignore(n: int) -> None:
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"not installed.*pip install 'pycolmap>=4.2'"),
        (SimpleNamespace(__version__="0.6.1"), "expected version >= 4.2, got 0.6.1; pip install --upgrade"),
        (SimpleNamespace(__version__="0.0.1"), "got 0.0.1"),
        (SimpleNamespace(), "got of unknown version"),
    ],
)
def test_a_missing_or_old_package_says_what_to_install(
    module: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", module)
    with pytest.raises(BadArgument, match=f"^pycolmap: .*{message}"):
        load()


def shifted_photos(folder: Path) -> list[str]:
    """Windows of one random texture; the last picture is grey."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (160, 220), dtype=np.uint8)
    texture = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)).convert("RGB")
    for i in range(3):
        texture.crop((20 * i, 5 * i, 20 * i + 160, 5 * i + 120)).save(folder / f"{i}.png")
    Image.new("RGB", (160, 120), (128, 128, 128)).save(folder / "grey.png")
    return ["0.png", "1.png", "2.png", "grey.png"]


def test_features_and_matches_are_found_once_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    names = shifted_photos(tmp_path / "images")
    sfm = Colmap(Options(tmp_path, tmp_path), tmp_path / "images", tmp_path / "colmap")
    sfm.add_pictures([names[:2], names[2:]])
    counts: list[int] = []
    sfm.extract(names, counts.append)
    assert counts[-1] == 4
    found = sfm.n_features()
    assert min(found[name] for name in names[:3]) > 50
    assert found["grey.png"] == 0
    sfm.match([("0.png", "1.png")], ignore)
    sfm.match([("0.png", "1.png"), ("1.png", "2.png"), ("0.png", "grey.png")], counts.append)
    assert counts[-1] == 3
    assert sfm.n_partners() == {"0.png": 1, "1.png": 2, "2.png": 1, "grey.png": 0}
    before = len(counts)
    sfm.add_pictures([names])
    sfm.extract(names, counts.append)
    sfm.match([("1.png", "0.png")], counts.append)
    assert len(counts) == before  # nothing is left to do
    assert sfm.n_features() == found


def test_a_picture_that_colmap_cannot_read_hinders_no_other(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    names = ["odd.jpg", *shifted_photos(tmp_path / "images")[:2]]
    (tmp_path / "images" / "odd.jpg").write_text("no picture")
    sfm = Colmap(Options(tmp_path, tmp_path), tmp_path / "images", tmp_path / "colmap")
    sfm.add_pictures([names])
    sfm.extract(names, ignore)
    sfm.match([("odd.jpg", "0.png"), ("0.png", "1.png")], ignore)
    assert sfm.n_partners() == {"0.png": 1, "1.png": 1}


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_poses_of_made_up_matches_are_found(mapper: str, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    (tmp_path / "images").mkdir()
    sfm = Colmap(Options(tmp_path, tmp_path, camera_model="SIMPLE_RADIAL"), tmp_path / "images", tmp_path / "colmap")
    made_up = pycolmap.SyntheticDatasetOptions()
    made_up.num_rigs, made_up.num_cameras_per_rig, made_up.num_frames_per_rig, made_up.num_points3D = 1, 1, 7, 120
    pycolmap.set_random_seed(1)
    with pycolmap.Database.open(tmp_path / "colmap" / "database.db") as database:
        truth = pycolmap.synthesize_dataset(made_up, database)
    counts: list[int] = []
    (folder,) = sfm.map(mapper, tmp_path / "models", counts.append)
    model = sfm.read(folder)
    assert len(model.poses) == 7
    assert model.error < 0.1
    if mapper == "incremental":
        assert counts == [2, 3, 4, 5, 6, 7]
    (lens,) = model.lenses.values()
    assert lens.model == "SIMPLE_RADIAL"
    expected = {image.name: camera_to_world(image.cam_from_world().matrix()) for image in truth.images.values()}
    found = {name: camera_to_world(pose.world_to_camera) for name, pose in model.poses.items()}
    first, *others = sorted(expected)
    for name in others:  # rotations between cameras do not depend on the coordinate system
        relative = [poses[first][:3, :3].T @ poses[name][:3, :3] for poses in (expected, found)]
        np.testing.assert_allclose(relative[0], relative[1], atol=0.02)
    sfm.write_points(folder, tmp_path / "points.ply")
    assert (tmp_path / "points.ply").read_bytes().startswith(b"ply")
