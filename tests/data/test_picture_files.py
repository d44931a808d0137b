from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_nerf import BlenderData, InstantNGPField, NeRFModule, OccupancyGrid, SyntheticScene
from lightning_nerf.data import NeRFDataModule, picture_files, picture_memory
from lightning_nerf.data.host_rays import HostRays, limited
from lightning_nerf.data.images import picture_kind, read_pictures, read_rgba
from lightning_nerf.data.picture_files import open_pictures, pictures_in
from lightning_nerf.data.picture_memory import is_mapped, needs_host_draws
from lightning_nerf.ops.random import make_key

# Lightning 2.6.6 on torch 2.13; everything else stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")

KINDS: dict[str, Any] = {  # suffix, mode, and what is saved with it
    "RGB": (".png", {}),
    "RGBA": (".png", {}),
    "L": (".jpg", {}),
    "LA": (".png", {}),
    "P": (".png", {}),
    "transparent P": (".png", {"transparency": 3}),
    "transparent RGB": (".png", {"transparency": (1, 2, 3)}),
    "CMYK": (".jpg", {}),
}


def picture(folder: Path, kind: str, width: int = 7, height: int = 5, seed: int = 0) -> Path:
    suffix, options = KINDS[kind]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    path = folder / f"{kind} {seed}{suffix}"
    Image.fromarray(values, "RGBA").convert(kind.split()[-1]).save(path, **options)
    return path


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_says_what_the_picture_has(kind: str, tmp_path: Path) -> None:
    rgba, has_alpha = read_rgba(path := picture(tmp_path, kind))
    assert picture_kind(path) == (7, 5, has_alpha)
    assert rgba.shape == (5, 7, 4)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("downscale", [1, 2])
@pytest.mark.parametrize("kinds", [("RGB", "L"), ("RGB", "RGBA"), ("transparent P", "CMYK", "P")])
def test_mapped_pictures_are_those_that_memory_would_hold(kinds: tuple[str, ...], downscale: int, tmp_path: Path) -> None:
    paths = [picture(tmp_path, kind, width=7 + i, seed=i) for i, kind in enumerate(kinds)] * 9  # more than at once
    expected = read_pictures(paths, downscale)
    with pictures_in(tmp_path / "cache"):
        for _ in range(2):
            pictures, sizes = open_pictures(paths, downscale)
            assert sizes == expected[1]
            assert all(map(torch.equal, pictures, expected[0]))
            assert all(map(is_mapped, pictures))
    assert not any(map(is_mapped, open_pictures(paths, downscale)[0]))


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_pictures_are_decoded_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = picture(tmp_path, "RGB"), list[Path]()

    def counted(paths: Any, downscale: int) -> Any:
        decoded.extend(paths)
        return read_pictures(paths, downscale)

    monkeypatch.setattr(picture_files, "read_pictures", counted)
    with pictures_in(tmp_path / "cache"):
        for expected in (1, 1):
            open_pictures([path])
            assert len(decoded) == expected
        open_pictures([path], 2)
        assert len(decoded) == 2
        os.utime(path, ns=(1, 1))
        open_pictures([path])
        assert len(decoded) == 3
        (file,) = [f for f in (tmp_path / "cache").iterdir() if f.stat().st_size == 7 * 5 * 3][-1:]
        file.write_bytes(b"short")
        os.utime(path, ns=(1, 1))
        assert all(p.shape == (5, 7, 3) for p in open_pictures([path])[0])


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("free", "mapped"), [(2 * 4 * 35 * 4 // 3 + 1, False), (2 * 4 * 35, True), (None, False)])
def test_without_a_folder_pictures_are_mapped_where_memory_does_not_hold_them(
    free: int | None, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(picture_files, "SMALL", 0)
    monkeypatch.setattr(picture_files, "available_bytes", lambda device: free)
    assert is_mapped(open_pictures([picture(tmp_path, "RGB")])[0][0]) == mapped
    assert (tmp_path / "home" / "lightning-nerf" / "pictures").is_dir() == mapped


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_errors_name_the_folder_or_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path, "RGB")
    with pictures_in(tmp_path / "cache"):
        with pytest.raises(ValueError, match="7x5 pixels are too few for downscale=6"):
            open_pictures([path], 6)
        (tmp_path / "none.png").write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"none.png: cannot be read as an image"):
            open_pictures([path, tmp_path / "none.png"])
        monkeypatch.setattr(picture_files.shutil, "disk_usage", lambda path: type("Full", (), {"free": 104}))
        with pytest.raises(ValueError, match=r"picture_cache: 1 pictures need .* GiB in .*cache"):
            open_pictures([path])


def test_a_mapped_set_is_one_tensor_of_its_file(tmp_path: Path, scene_cache: Path) -> None:
    arguments: dict[str, Any] = {"resolution": 24, "n_train": 4, "n_test": 2, "n_val": 1, "cache_dir": scene_cache}
    mapped, plain = SyntheticScene(**arguments, picture_cache=tmp_path), SyntheticScene(**arguments)
    assert is_mapped(mapped.scene("train").images.colors)
    torch.testing.assert_close(mapped.scene("train").images, plain.scene("train").images)
    torch.testing.assert_close(mapped.draw(make_key(0), 100), plain.draw(make_key(0), 100), rtol=0, atol=0)
    assert BlenderData.arguments_of_file({"root": "r", "picture_cache": "/x"}) == {"root": "r"}
    assert "picture_cache" not in SyntheticScene.arguments_of_file({**arguments, "picture_cache": "/x"})
    assert "cache_dir" in SyntheticScene.arguments_of_file({**arguments, "picture_cache": "/x"})


@pytest.mark.parametrize(("mapped", "free", "expected"), [(True, 100, True), (True, 10**12, False), (False, 100, False)])
def test_only_mapped_pictures_that_memory_does_not_hold_are_drawn_from_on_the_host(
    mapped: bool, free: int, expected: bool, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_memory, "available_bytes", lambda device: free)
    data = SyntheticScene(24, 4, 2, 1, cache_dir=scene_cache, picture_cache=tmp_path if mapped else None)
    assert needs_host_draws(data.scene("train").images) == expected


class OnHost(SyntheticScene):
    """Draws on the host, as if its device could not read the pictures."""

    def draws_on_host(self, device: torch.device) -> bool:
        """Always."""
        return True


def fitted(data: NeRFDataModule, folder: Path, **flags: Any) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    field = InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=32)
    module = NeRFModule(field, OccupancyGrid(resolution=16), samples_per_step=2048, max_rays=256, initial_rays=64, seed=5)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=20, limit_val_batches=0, enable_model_summary=False, **quiet, **flags)
    trainer.fit(module, datamodule=data)
    assert isinstance(trainer.train_dataloader, HostRays) == isinstance(data, OnHost)
    return [p.detach().clone() for p in module.parameters()], module.n_rays


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2}, {"overfit_batches": 3}])
def test_a_fit_on_rays_of_the_host_is_the_fit_on_rays_of_the_device(
    flags: dict[str, Any], tmp_path: Path, scene_cache: Path
) -> None:
    arguments: dict[str, Any] = {"resolution": 24, "n_train": 4, "n_test": 2, "n_val": 1, "cache_dir": scene_cache}
    expected, n_rays = fitted(SyntheticScene(**arguments), tmp_path, **flags)
    given, n_given = fitted(OnHost(**arguments, picture_cache=tmp_path), tmp_path, **flags)
    assert int(n_rays) == int(n_given) < 256
    for ours, theirs in zip(given, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_limited_rays_are_those_of_a_limited_draw(scene_cache: Path) -> None:
    data = SyntheticScene(24, 4, 2, 1, cache_dir=scene_cache)
    n_rays = torch.tensor(60, dtype=torch.int32)
    batch = limited(data.draw(make_key(1), 100), n_rays)
    torch.testing.assert_close(batch, data.draw(make_key(1), 100, n_rays), rtol=0, atol=0)


@pytest.mark.gpu
def test_a_fit_from_a_mapped_file_runs_on_a_gpu(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_memory, "needs_host_draws", lambda images: True)
    data = SyntheticScene(24, 4, 2, 1, cache_dir=scene_cache, picture_cache=tmp_path, device_budget=0)
    field = InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=32)
    module = NeRFModule(field, OccupancyGrid(resolution=16), samples_per_step=2048, max_rays=256, initial_rays=64)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="gpu", devices=1, max_steps=60, limit_val_batches=0, enable_model_summary=False, **quiet
    )
    trainer.fit(module, datamodule=data)
    assert isinstance(trainer.train_dataloader, HostRays)
    assert data.draw(make_key(0, device="cuda"), 8).rgb.device.type == "cuda"
