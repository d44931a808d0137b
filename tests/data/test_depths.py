from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_nerf import CaptureData, DepthSupervision, InstantNGPField, NeRFModule, OccupancyGrid, Photometric
from lightning_nerf.data.depths import read_depths
from lightning_nerf.losses import Loss
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import Step
from tests.data.captures import H, W, write_transforms

# Lightning 2.6.6 on torch 2.13; everything else stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def write_depths(root: Path, n: int = 9, *, unit: float | None = None, masked: bool = False, suffix: str = ".png") -> Path:
    """Frame i > 0 has depth 1000 i + p at pixel p, 0 at pixel 0; frame 0 has none. ``suffix``: of PNG, or of NumPy."""

    def change(content: dict[str, Any]) -> None:
        for i, frame in enumerate(content["frames"]):
            if i:
                frame["depth_file_path"] = f"depths/{i}{suffix}"
        if unit is not None:
            content["integer_depth_scale"] = unit

    write_transforms(root, n, change=change)
    (root / "depths").mkdir()
    for i in range(1, n):
        values = 1000 * i + np.arange(H * W).reshape(H, W)
        values[0, 0] = 0
        if suffix == ".png":
            Image.fromarray(values.astype(np.uint16)).save(root / f"depths/{i}.png")
        else:
            np.save(root / f"depths/{i}.npy", values.astype(np.float32) * 0.001)
    if masked:
        (root / "masks").mkdir()
        for i in range(n):
            mask = np.zeros((H, W), np.uint8)
            mask[:, ::3] = 255
            Image.fromarray(mask).save(root / f"masks/f_{i}.png")
    return root


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("suffix", "unit"), [(".png", None), (".png", 0.5), (".npy", None)])
def test_rays_meet_what_was_measured(
    tmp_path: Path, suffix: str, unit: float | None, masked: bool, normalize: bool
) -> None:
    """Depth along the camera's axis, in the scene's units: of each ray, by its picture, column and row."""
    data = CaptureData(write_depths(tmp_path, unit=unit, masked=masked, suffix=suffix), normalize=normalize)
    data.depths.wanted = True
    batch, scene = data.draw(make_key(1), 500), data.scene("train")
    assert batch.depth is not None
    assert batch.rays.cameras is not None
    scale = 1.0 if scene.to_world is None else float(scene.to_world[:3, :3].det()) ** (1 / 3)
    for i in range(0, 500, 7):
        view = int(batch.rays.cameras[i])
        camera = scene.cameras.c2w[view]
        local = camera[:, :3].T @ batch.rays.directions[i]
        fx, fy, cx, cy = scene.cameras.intrinsics[view].tolist()
        z = -float(local[2])
        column, row = int(fx * float(local[0]) / z + cx), int(cy - fy * float(local[1]) / z)
        number = int(scene.names[view].removeprefix("f_"))
        measured = 1000 * number + row * W + column if row or column else 0
        expected = 0.0 if number == 0 else measured * (0.001 if unit is None else unit) / z / scale
        assert float(batch.depth[i]) == pytest.approx(expected, rel=1e-5)
        assert not masked or column % 3 == 0


def test_depths_are_read_only_where_they_are_wanted(tmp_path: Path) -> None:
    data = CaptureData(write_depths(tmp_path))
    for file in (tmp_path / "depths").iterdir():
        file.write_bytes(b"no picture")
    assert data.draw(make_key(1), 5).depth is None
    data.depths.wanted = True
    with pytest.raises(ValueError, match=r"depths/\d.png: cannot be read as depths"):
        data.draw(make_key(1), 5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2 * H, 2 * W), None),
        ((H, 2 * W), f"expected a depth for each pixel of {W}x{H}, got {2 * W}x{H}"),
        ((H, W, 3), "got"),
    ],
)
def test_depths_of_another_size(tmp_path: Path, shape: tuple[int, ...], message: str | None) -> None:
    data = CaptureData(write_depths(tmp_path, suffix=".npy"), normalize=False)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
    for file in (tmp_path / "depths").iterdir():
        np.save(file, values)
    if message:
        with pytest.raises(ValueError, match=message):
            read_depths(data.scene("train"))
        return
    depths = read_depths(data.scene("train"))
    assert depths is not None
    assert torch.equal(depths[-H * W :].view(H, W), torch.from_numpy(values[1::2, 1::2]))


def test_what_is_no_length_is_not_known(tmp_path: Path) -> None:
    data = CaptureData(write_depths(tmp_path, suffix=".npy"), normalize=False)
    values = np.full((H, W), 2.0, np.float32)
    values[0, :4] = [np.nan, np.inf, -1, 0]
    for file in (tmp_path / "depths").iterdir():
        np.save(file, values)
    depths = read_depths(data.scene("train"))
    assert depths is not None
    assert depths[-H * W :][:6].tolist() == [0, 0, 0, 0, 2, 2]


@pytest.mark.parametrize("scale", ["0.001", "[1]", "-1", "0"])
def test_a_scale_that_is_none_is_named(tmp_path: Path, scale: str) -> None:
    root = write_depths(tmp_path)
    content = json.loads((root / "transforms.json").read_text())
    content["integer_depth_scale"] = json.loads(scale)
    (root / "transforms.json").write_text(json.dumps(content))
    if scale == "0.001":
        assert CaptureData(root).scene("train").depth_unit == 0.001
        return
    with pytest.raises(ValueError, match="expected a number > 0 for 'integer_depth_scale', got "):
        CaptureData(root).scene("train")


class Seen(Loss):
    """Keeps the depths of its steps; learns nothing."""

    needs_depths = True

    def forward(self, step: Step) -> Tensor:
        assert step.batch.depth is not None
        step.logs["known"] = (step.batch.depth > 0).sum()
        return 0 * step.render.rgb.sum()


def fit(data: CaptureData, losses: list[Loss]) -> L.Trainer:
    field = InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=32)
    module = NeRFModule(
        field, OccupancyGrid(resolution=16), losses=losses, samples_per_step=4096, max_rays=64, initial_rays=64
    )
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=3, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return trainer


def test_a_loss_gets_depths_where_it_states_that_it_needs_them(tmp_path: Path) -> None:
    data = CaptureData(write_depths(tmp_path))
    fit(data, [Photometric(), Seen(), DepthSupervision(weight=0.1)])
    assert data.depths.wanted
    fit(data, [Photometric()])
    assert not data.depths.wanted


def test_a_loss_that_wants_depths_says_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: the loss 'depth_supervision' wants depths, but no training view has any"):
        fit(CaptureData(write_transforms(tmp_path)), [Photometric(), DepthSupervision()])
