"""Bad input, one row for each kind: a clear error that names it, or a defined result."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_nerf.callbacks import ImageLogger, OccupancyGridUpdate, RunResults, Telemetry, Turntable
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.cli import main
from lightning_nerf.data import BlenderData, Images, NeRFDataModule, SyntheticScene
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch
from tests.data.test_blender import set_in, set_in_frame, write_split
from tests.data.test_images import random_picture
from tests.scenes import tiny_module, tiny_scene, trainer

NAN, INF = float("nan"), float("inf")

# -- an error, at the start ----------------------------------------------------------------------------------------------


def folder(change: Callable[[dict[str, Any]], Any] | None = None) -> Callable[[Path], None]:
    """Load a scene whose JSON was changed."""

    def load(path: Path) -> None:
        write_split(path, change=change)
        BlenderData(path).setup("fit")

    return load


def malformed(path: Path) -> None:
    (path / "transforms_train.json").write_text('{"frames": [')
    BlenderData(path).setup("fit")


def unreadable(path: Path) -> None:
    write_split(path)
    (path / "train/r_1.png").write_bytes(_png(6, 8)[:-40])
    BlenderData(path).setup("fit")


def _png(height: int, width: int) -> bytes:
    return iio.imwrite("<bytes>", random_picture(height, width, 4), extension=".png")


def command_line(*arguments: str, recipe: Callable[[str], str] = str) -> Callable[[Path], None]:
    """``lightning-nerf fit`` with a recipe of one's own, changed."""

    def fit(path: Path) -> None:
        text = (Path(__file__).parents[1] / "recipes/synthetic/instant_ngp.yaml").read_text()
        assert recipe is str or recipe(text) != text
        (path / "mine.yaml").write_text(recipe(text))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["lightning-nerf", "fit", "-c", str(path / "mine.yaml"), *arguments])
            main()

    return fit


def unwritable(**options: Any) -> Callable[[Path], None]:
    def fit(path: Path) -> None:
        (path / "file").touch()
        write_split(path / "scene")
        places = {"default_root_dir": str(path / "file/runs"), **options}
        module = tiny_module()
        before = module.field.position_encoding.table.detach().clone()
        try:
            trainer(path, max_steps=2, **places).fit(module, BlenderData(path / "scene"))
        finally:
            assert torch.equal(before, module.field.position_encoding.table)  # not after the training

    return fit


REFUSED: dict[str, tuple[Callable[[Path], Any], type[BaseException], str]] = {
    "missing data folder": (
        lambda path: BlenderData(path / "gone").setup("fit"), FileNotFoundError, "root: no folder .*gone"
    ),
    "malformed json": (malformed, ValueError, "transforms_train.json: cannot be read as JSON"),
    "zero images": (folder(set_in(frames=[])), ValueError, "transforms_train.json: expected a list of frames .* not empty"),
    "unreadable image": (unreadable, ValueError, "r_1.png: cannot be read as an image"),
    "non-finite pose": (
        folder(set_in_frame(1, transform_matrix=[[NAN] * 4] * 4)),
        ValueError,
        r"transforms_train.json: frame 1 .*transform_matrix holds values that are not finite",
    ),
    "pose beyond float32": (
        folder(set_in_frame(1, transform_matrix=[[1e39, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])),
        ValueError,
        r"transforms_train.json: frame 1 .*transform_matrix holds values that are not finite",
    ),
    "integer pose beyond float64": (
        folder(set_in_frame(1, transform_matrix=[[1, 0, 0, 10**400], [0, 1, 0, 0], [0, 0, 1, 0]])),
        ValueError,
        r"transforms_train.json: frame 1 .*transform_matrix holds values that are not finite",
    ),
    "aabb with min >= max": (
        lambda path: BlenderData(path, aabb=[[0, 0, 0], [1, 0, 1]]),
        ValueError,
        r"aabb: expected a minimum corner and a maximum corner above it.* got \[\[0, 0, 0\], \[1, 0, 1\]\]",
    ),
    "unknown recipe key": (
        command_line(recipe=lambda text: text.replace("max_resolution:", "max_resolutoin:")),
        SystemExit,
        r"model.field: .*InstantNGPField has no argument 'max_resolutoin'; did you mean 'max_resolution'\?",
    ),
    "misspelt class_path": (
        command_line(recipe=lambda text: text.replace("callbacks.Turntable", "callbacks.Turntabel")),
        SystemExit,
        r"trainer.callbacks: class_path '.*Turntabel': .* has no attribute 'Turntabel'; did you mean 'Turntable'\?",
    ),
    "step size 0": (lambda _: OccupancyGrid(step_size=0), ValueError, r"step_size: expected a number in \(0, inf\), got 0"),
    "results folder not writable": (
        unwritable(callbacks=[RunResults()]),
        OSError,
        "the run's folder .*: nothing can be written there, Not a directory",
    ),
    "pictures' folder not writable": (unwritable(callbacks=[ImageLogger()]), OSError, "the run's folder"),
    "turntable's folder not writable": (unwritable(callbacks=[Turntable()]), OSError, "the run's folder"),
    "checkpoints' folder not writable": (
        lambda path: unwritable(callbacks=[ModelCheckpoint(path / "file/checkpoints")], enable_checkpointing=True)(path),
        OSError,
        "dirpath of ModelCheckpoint: nothing can be written there, Not a directory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_refused(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt, kind, message = REFUSED[row]
    with pytest.raises(kind) as caught:
        attempt(tmp_path)
    text = str(caught.value) if kind is not SystemExit else capsys.readouterr().err
    assert re.search(message, text), text


# -- an error, in the middle: what was there stays ------------------------------------------------------------------------


class FullDisk:
    """Takes so many bytes, then no more."""

    def __init__(self, path: Any, mode: str, room: int) -> None:
        self.file, self.room = open(path, mode), room  # noqa: SIM115

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("room", [0, 1000, 30_000])
def test_disk_full_while_saving(room: int, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save reports some of these with an error of its own that names neither file nor disk."""
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    module = tiny_module()
    fit = trainer(tmp_path, max_steps=2, callbacks=[every], enable_checkpointing=True)
    fit.fit(module, tiny_scene(scene_cache))
    good = (tmp_path / "step=2.ckpt").read_bytes()

    monkeypatch.setattr("lightning_nerf.files.open", lambda path, mode: FullDisk(path, mode, room), raising=False)
    again = trainer(tmp_path, max_steps=6, callbacks=[every], enable_checkpointing=True)
    with pytest.raises(OSError, match=r"cannot be written, the disk is full: .*step=4.ckpt") as caught:
        again.fit(module, tiny_scene(scene_cache), ckpt_path=tmp_path / "step=2.ckpt")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir() if "ckpt" in path.name] == ["step=2.ckpt"]
    assert (tmp_path / "step=2.ckpt").read_bytes() == good


@pytest.mark.parametrize(
    ("callback", "left", "told"),
    [
        (
            RunResults(),
            "results.json",
            pytest.raises(OSError, match=r"^\[.*cannot be written, the disk is full: .*results.json"),
        ),
        # A picture is not worth a training.
        (ImageLogger(), "images/test_r_0.png", pytest.warns(UserWarning, match=r"the run goes on: .*the disk is full")),
    ],
    ids=["results", "pictures"],
)
def test_disk_full_while_writing_results(
    callback: L.Callback, left: str, told: Any, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, scene = tiny_module(), tiny_scene(scene_cache)
    fit = trainer(tmp_path, max_steps=1, callbacks=[callback])
    fit.fit(module, scene)
    fit.test(module, scene, verbose=False)
    path = run_folder(fit) / left
    good = path.read_bytes()
    monkeypatch.setattr("lightning_nerf.files.open", lambda path, mode: FullDisk(path, mode, 100), raising=False)
    with told:
        fit.test(module, scene, verbose=False)
    assert path.read_bytes() == good


# -- a defined result ------------------------------------------------------------------------------------------------------


class OwnBatches(SyntheticScene):
    """Is its own loader, of rays of its own making."""

    change: Callable[[RayBatch], RayBatch]

    def train_dataloader(self) -> Any:
        return self

    def __iter__(self) -> Iterator[RayBatch]:
        return (self.change(self.draw(make_key(0, step=step), 64)) for step in range(6))


def own(change: Callable[[RayBatch], RayBatch]) -> Callable[[Path], SyntheticScene]:
    def scene(cache: Path) -> SyntheticScene:
        data = OwnBatches(resolution=24, n_train=6, n_test=2, cache_dir=str(cache))
        data.change = change
        return data

    return scene


def some(batch: RayBatch, n: int) -> RayBatch:
    return RayBatch(batch.rays.map(lambda t: t[:n]), batch.rgb[:n], batch.alpha[:n])


def away(batch: RayBatch) -> RayBatch:
    return batch._replace(rays=batch.rays._replace(directions=-batch.rays.directions))


class Broken(InstantNGPField):
    """Has a density that is not finite in half of space, after a few steps."""

    def __init__(self, value: float) -> None:
        super().__init__(n_levels=4, log2_table_size=10, max_resolution=64, width=16)
        self.value = value

    def geometry(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        density, features = super().geometry(positions)
        return torch.where(positions[:, 0] > 0, density * self.value, density), features


class Emptied(L.Callback):
    """Closes all cells before every step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.estimator.binaries.zero_()


Fit = tuple[dict[str, Any], Callable[[Path], SyntheticScene], list[L.Callback]]


def mixed_sizes(cache: Path) -> NeRFDataModule:
    """The tiny scene, of whose second picture only the upper half is there."""
    data = tiny_scene(cache)
    scene = data.source.read("train")
    pictures = [scene.picture(i) for i in range(scene.n_views)]
    pictures[1] = pictures[1][:12]
    size = scene.cameras.size.clone()
    size[1, 1] = 12
    cut = scene._replace(cameras=scene.cameras._replace(size=size), images=Images.from_pictures(pictures))
    data.source.read = lambda split: cut  # type: ignore[method-assign]
    return data


DEFINED: dict[str, Callable[[], Fit]] = {
    "camera inside an empty grid": lambda: (
        {}, lambda cache: tiny_scene(cache, aabb=[[-5] * 3, [5] * 3], near=0.0), [OccupancyGridUpdate(), Emptied()]
    ),
    "mixed image sizes": lambda: ({}, mixed_sizes, []),
    "zero rays": lambda: ({}, own(lambda batch: some(batch, 0)), []),
    "zero samples": lambda: ({}, own(away), []),
    "NaN density": lambda: ({"field": Broken(NAN)}, tiny_scene, []),
    "Inf density": lambda: ({"field": Broken(INF)}, tiny_scene, []),
    "capacity too small for one ray": lambda: ({"samples_per_step": 1}, tiny_scene, []),
}  # fmt: skip
NO_SAMPLES = ("camera inside an empty grid", "zero rays", "zero samples", "capacity too small for one ray")


@pytest.mark.parametrize("row", DEFINED)
def test_defined(row: str, tmp_path: Path, scene_cache: Path) -> None:
    options, scene, callbacks = DEFINED[row]()
    telemetry = Telemetry(every_n_steps=1)
    module: InstantNGP = tiny_module(**options)
    fit = trainer(tmp_path, max_steps=6, callbacks=[*callbacks, telemetry])
    told = pytest.warns(UserWarning, match="no step had a sample to train on") if row in NO_SAMPLES else nullcontext()
    with told:
        fit.fit(module, scene(scene_cache))
    assert fit.global_step == 6
    for name, tensor in module.state_dict().items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
    if row in NO_SAMPLES:
        assert telemetry.latest["train/n_samples"] == 0
        assert telemetry.latest["train/loss"] >= 0
    if row == "zero rays":  # one with no samples counts: it is background
        assert telemetry.latest["train/n_rays"] == 0
        assert telemetry.latest["train/loss"] == 0
    rendered = module.render(module.datamodule.draw(module.key, 3).rays, torch.ones(3)).rgb
    assert rendered.shape == (3, 3)


def test_every_kind_is_here() -> None:
    """Of issue 5's list; the disk has tests of its own above."""
    kinds = """missing data folder, malformed json, zero images, mixed image sizes, unreadable image, non-finite pose,
        camera inside an empty grid, zero rays, zero samples, NaN density, Inf density, aabb with min >= max, unknown recipe
        key, misspelt class_path, step size 0, capacity too small for one ray, results folder not writable"""
    assert {" ".join(kind.split()) for kind in kinds.split(",")} <= {*REFUSED, *DEFINED}
