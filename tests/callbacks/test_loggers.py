from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_nerf.callbacks import ImageLogger, PSNRLogger, Telemetry, Turntable
from lightning_nerf.callbacks.image_logger import GAP, view_picture
from lightning_nerf.callbacks.loggers import wandb_run_id
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.types import Render
from tests.callbacks.test_run_folder import Remote
from tests.scenes import tiny_module, tiny_scene, trainer


class Album(Remote):
    """A third party's logger with the methods that WandbLogger has."""

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir, "album")
        self.seen: list[tuple[Any, ...]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.seen.append((key, images[0].shape, images[0].dtype, step))

    def log_video(self, key: str, videos: list[Any], step: int | None = None) -> None:
        self.seen.append((key, Path(videos[0]).is_file(), step))


class FullDisk(Album):
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        raise OSError("No space left on device")

    log_video = log_image


def fit_and_test(tmp_path: Path, cache: Path, **options: Any) -> Any:
    """Six steps with a validation after the third and the sixth, and a test."""
    callbacks = [Telemetry(every_n_steps=2), PSNRLogger(), ImageLogger(n_views=1), Turntable(n_frames=2)]
    defaults = {"max_steps": 6, "callbacks": callbacks, "limit_val_batches": 1, "val_check_interval": 3}
    run = trainer(tmp_path, **{**defaults, **options})
    module, scene = tiny_module(), tiny_scene(cache, n_val=1)
    run.fit(module, scene)
    run.test(module, datamodule=scene, verbose=False)
    return run


def size_of_pictures() -> tuple[int, ...]:
    """Five panels of 24 pixels with their words."""
    shot, grid = torch.zeros(24, 24, 3), OccupancyGrid(resolution=4).bind([-1, -1, -1, 1, 1, 1])
    nothing = Render(shot, shot[..., 0], shot[..., 0], shot[..., 0], {})
    return tuple(view_picture(nothing, shot, grid).shape)


def test_a_third_partys_logger_gets_pictures_and_film(tmp_path: Path, scene_cache: Path) -> None:
    album = Album(tmp_path)
    fit_and_test(tmp_path, scene_cache, logger=[album])
    size = size_of_pictures()
    assert size[0] > 24
    assert size[1] >= 5 * 24 + 4 * GAP
    picture = (size, np.dtype(np.uint8))
    assert album.seen == [
        ("val/r_0", *picture, 2), ("val/r_0", *picture, 5), ("test/r_0", *picture, 6), ("test/turntable", True, 6),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:FullDisk. .* is lost, the run goes on. OSError. No space left on device")
def test_a_logger_that_fails_over_a_picture_does_not_end_the_run(tmp_path: Path, scene_cache: Path) -> None:
    with pytest.warns(UserWarning, match="FullDisk: film 'test/turntable' is lost, the run goes on: OSError: No space"):
        run = fit_and_test(tmp_path, scene_cache, logger=[FullDisk(tmp_path)])
    assert run.global_step == 6
    assert (tmp_path / "project/album/images/test_r_0.png").is_file()


def test_tensorboard_and_csv_at_once(tmp_path: Path, scene_cache: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path, "board", version="one"), CSVLogger(tmp_path, "csv", version="one")]
    fit_and_test(tmp_path, scene_cache, logger=loggers)
    assert (tmp_path / "board/one/images/val_r_0.png").is_file()

    events = EventAccumulator(str(tmp_path / "board/one"), size_guidance={"images": 0}).Reload()
    assert {"train/psnr", "train/rays_per_second", "val/psnr", "test/psnr"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value > 0) for e in events.Scalars("val/psnr")] == [(2, True), (5, True)]
    (picture,) = events.Images("test/r_0")
    assert (picture.step, picture.height, picture.width, 3) == (6, *size_of_pictures())

    with open(tmp_path / "csv/one/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows if row["train/samples_per_second"]} == {2, 4}
    assert {int(row["step"]) for row in rows if row["val/psnr"]} == {2, 5}
    # A script's hyper-parameters are the module's arguments.
    assert "class_path: lightning_nerf.modules.instant_ngp.InstantNGP" in (tmp_path / "csv/one/hparams.yaml").read_text()


def test_accumulated_batches_are_one_step_to_loggers(tmp_path: Path, scene_cache: Path) -> None:
    logger = CSVLogger(tmp_path, "csv")
    fit_and_test(tmp_path, scene_cache, logger=logger, accumulate_grad_batches=2, val_check_interval=12)
    with open(tmp_path / "csv/version_0/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/mse"]] == [0, 1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in rows if row["val/psnr"]] == [5]


@pytest.mark.parametrize("content", [None, {"state_dict": {}}, {"wandb_run_id": "a1b2"}])
def test_the_run_that_wrote_a_checkpoint(tmp_path: Path, content: dict[str, Any] | None) -> None:
    path = tmp_path / "last.ckpt"
    if content is not None:
        torch.save(content, path)
    assert wandb_run_id(path) == (content or {}).get("wandb_run_id")


def test_the_run_of_a_checkpoint_that_is_cut_or_foreign(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"module": torch.nn.Linear(1, 1), "wandb_run_id": "a1b2"}, path)
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read as a checkpoint .*Unsupported global.*Linear"):
        wandb_run_id(path)
    assert wandb_run_id(path, weights_only=False) == "a1b2"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read as a checkpoint"):
        wandb_run_id(path)
