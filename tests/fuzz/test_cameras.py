from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_nerf.checks import BadArgument
from lightning_nerf.data import NeRFDataModule
from lightning_nerf.data.default_box import fit_box
from lightning_nerf.data.frames import Transforms, unique_names
from lightning_nerf.data.images import read_masks, read_pictures
from lightning_nerf.data.sources import TransformsSource
from lightning_nerf.data.splits import choose_split_files
from lightning_nerf.nerfacc.cameras import opencv_lens_undistortion, opencv_lens_undistortion_fisheye
from lightning_nerf.ops.camera_rays import camera_rays
from tests.fuzz.camera_files import CAPTURE_KEYS, ODD, SIZE, camera_file, mutated, mutated_bytes
from tests.fuzz.strategies import FLOATS, INF, NAN, assert_like, bounded, fuzz, tensors
from tests.fuzz.watch import nothing_done_outside
from tests.ops.harness import DEVICES

LENSES = {
    "opencv": (opencv_lens_undistortion, [0, 1, 2, 4, 5, 8, 12]),
    "fisheye": (opencv_lens_undistortion_fisheye, [4]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lens", LENSES)
@fuzz
@given(st.data())
def test_undistortion(device: str, lens: str, data: st.DataObject) -> None:
    function, lengths = LENSES[lens]
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    uv = data.draw(tensors((*shape, 2), (0.0, 0.1, -0.7, 1.0, 1e-30, 60.0, -1e4), device, FLOATS))
    batch = data.draw(st.sampled_from([(), shape]))
    number = data.draw(st.sampled_from(lengths))
    params = data.draw(tensors((*batch, number), (0.0, 0.1, -0.3, 1.0, -1.0, 1e-30, 1e20, -1e30), device, FLOATS[:2]))
    iters = data.draw(st.sampled_from([0, 1, 10, 50]))
    with bounded():
        assert_like(function(uv, params, iters=iters), uv.shape, uv.dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_point(device: str, lens: str, bad: float) -> None:
    function, lengths = LENSES[lens]
    uv = torch.full((3, 2), 0.3, device=device)
    params = torch.full((3, lengths[-1]), 0.01, device=device)
    good = function(uv, params)
    uv[1, 0], params[2, 0] = bad, bad
    with bounded():
        out = function(uv, params)
        assert out.shape == (3, 2)
        torch.testing.assert_close(out[0], good[0], rtol=0, atol=0)


FILES = int(os.environ.get("LIGHTNING_NERF_FUZZ_FILES", "60"))  # mutated files per test; each is named by its seed


def survives(seed: int, use: Callable[[], None]) -> bool:
    """Did it work? If not, the error must be one for a user, of one line; in either case it must end soon and only read."""
    refusal = ""
    with nothing_done_outside(), bounded(10.0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use()
        except BadArgument as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert not refusal or refusal.isprintable(), f"seed {seed}: {refusal!r}"
    assert len(refusal) < 1500, f"seed {seed}: {refusal!r}"
    return not refusal


def scene(root: Path) -> list[str]:
    """The pictures that the camera files name; what the folder holds."""
    for i in range(4):
        picture = np.full((SIZE[1], SIZE[0], 3 + i % 2), 40 * i + 50, np.uint8)
        iio.imwrite(root / f"r_{i}.png", picture)
    iio.imwrite(root / "r_4.jpg", np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    return sorted(path.name for path in root.iterdir())


def test_mutated_camera_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """And sound ones among them give cameras whose rays are finite."""
    scene(tmp_path)
    path = tmp_path / "transforms.json"
    path.touch()
    before = sorted(p.name for p in tmp_path.iterdir())

    def use() -> None:
        files = choose_split_files(tmp_path)
        for cameras_only in (False, True):
            transforms = Transforms(files.train, cameras_only)
            kept = files.frames("train", transforms.frames) or transforms.frames
            assert len(set(unique_names([frame.image for frame in kept], tmp_path))) == len(kept)
            assert all(size is None or min(size) > 0 for size in map(transforms.size, kept))
            intrinsics = torch.tensor([transforms.intrinsics(frame, *SIZE) for frame in kept])
            c2w = torch.tensor([frame.c2w for frame in kept])
            assert bool(intrinsics.isfinite().all())
            assert bool((intrinsics[:, :2] > 0).all())
            assert bool(c2w.isfinite().all())
            corner = torch.tensor([[0.5], [0.5]]).expand(2, len(kept))
            directions = camera_rays(c2w, intrinsics, *corner)[1]
            torch.testing.assert_close(directions.norm(dim=-1), torch.ones(len(kept)), atol=1e-4, rtol=0)
            if bool((c2w[:, :, 3].abs() < 1e15).all()):
                box = fit_box(c2w, intrinsics, torch.tensor([SIZE[::-1]]).expand(len(kept), 2))[0]
                assert bool(box.isfinite().all())
                assert bool((box[0] <= box[1]).all())
            if not cameras_only:
                _, sizes = read_pictures([frame.image for frame in kept])
                read_masks([frame.mask for frame in kept], sizes)

    worked = 0
    for seed in range(FILES):
        random_ = random.Random(seed)
        path.write_bytes(mutated(camera_file(random_), random_))
        worked += survives(seed, use)
    assert 0.05 * FILES < worked < 0.7 * FILES  # neither all sound nor all refused at the first look
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_mutated_captures_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """And sound ones among them are in units of their own."""
    scene(tmp_path)
    path = tmp_path / "transforms.json"

    def use() -> None:
        source = TransformsSource(tmp_path)
        data = NeRFDataModule(source)
        views, to_world = data.scene("train"), source.to_world()
        assert to_world is not None
        assert bool(to_world.isfinite().all())
        assert bool(data.scene_box.aabb.isfinite().all())
        assert bool(views.cameras.c2w.isfinite().all())
        back = views.cameras.c2w[:, :, 3].double() @ to_world[:3, :3].T + to_world[:3, 3]
        raw = source.read_world("train").cameras.c2w[:, :, 3].double()
        torch.testing.assert_close(back, raw, rtol=1e-3, atol=1e-4 * float(raw.abs().max()))

    worked = 0
    for seed in range(FILES):
        random_ = random.Random(seed)
        content = camera_file(random_)
        for entry in (content, *content["frames"]):
            if random_.random() < 0.15:
                entry[random_.choice(CAPTURE_KEYS)] = random_.choice(ODD)
        path.write_bytes(mutated(content, random_) if seed % 2 else json.dumps(content).encode())
        worked += survives(seed, use)
    assert 0.05 * FILES < worked < 0.9 * FILES


def test_mutated_pictures_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    names = scene(tmp_path)
    originals = [(tmp_path / name).read_bytes() for name in names]

    def use() -> None:
        pictures, sizes = read_pictures([path])
        assert [tuple(picture.shape[:2]) for picture in pictures] == sizes
        assert pictures[0].shape[-1] in (3, 4)

    for seed in range(FILES):
        random_ = random.Random(seed)
        which = random_.randrange(len(names))
        path = tmp_path / f"mutated{names[which][-4:]}"
        path.write_bytes(mutated_bytes(originals[which], random_))
        survives(seed, use)
