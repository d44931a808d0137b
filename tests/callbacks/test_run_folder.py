from __future__ import annotations

import errno
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_nerf.callbacks import ImageLogger, PSNRLogger, RunResults
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.data import BlenderData
from tests.data.test_blender import write_split
from tests.scenes import tiny_module, tiny_scene, trainer


class Remote(Logger):
    """A third party's logger, whose runs share a save_dir and have ids, as those of W&B and MLflow do."""

    def __init__(self, save_dir: Path | None, version: str | None) -> None:
        super().__init__()
        self._save_dir, self._version = save_dir, version

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str | None:
        return self._version

    @property
    def save_dir(self) -> str | None:
        return None if self._save_dir is None else str(self._save_dir)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


def test_the_folder_is_the_first_loggers_own(tmp_path: Path) -> None:
    csv, board = CSVLogger(tmp_path, "scene"), TensorBoardLogger(tmp_path / "board", "scene", version="mine")
    assert run_folder(trainer(tmp_path, logger=csv)) == tmp_path / "scene/version_0"
    assert run_folder(trainer(tmp_path, logger=[board, csv])) == tmp_path / "board/scene/mine"
    assert run_folder(trainer(tmp_path, logger=Remote(tmp_path / "runs", "a1"))) == tmp_path / "runs/project/a1"
    assert run_folder(trainer(tmp_path, logger=Remote(None, "a2"))) == tmp_path / "project/a2"


@pytest.mark.parametrize("options", [{}, {"logger": Remote(None, None)}])
def test_where_no_logger_names_one_each_trainer_gets_a_new_one(tmp_path: Path, options: dict[str, Any]) -> None:
    trainers = [trainer(tmp_path, **options) for _ in range(3)]
    folders = [run_folder(t) for t in trainers]
    assert folders == [tmp_path / f"lightning_logs/version_{n}" for n in range(3)]
    assert [run_folder(t) for t in trainers] == folders


@pytest.mark.filterwarnings("ignore:Checkpoint directory .*checkpoints exists and")  # without a logger Lightning mixes them
@pytest.mark.parametrize("logger", [False, True], ids=["no logger", "CSV"])
def test_runs_leave_each_others_files_alone(tmp_path: Path, scene_cache: Path, logger: bool) -> None:
    kept: dict[Path, bytes] = {}
    for steps in (2, 3):
        run = trainer(
            tmp_path, max_steps=steps, callbacks=[ImageLogger(n_views=1), RunResults()], enable_checkpointing=True,
            logger=CSVLogger(tmp_path / "runs", "scene") if logger else False,
        )  # fmt: skip
        module, scene = tiny_module(), tiny_scene(scene_cache)
        run.fit(module, scene)
        run.test(module, datamodule=scene, verbose=False)
        folder = run_folder(run)
        assert (folder / "results.json").is_file()
        assert len(list(folder.glob("images/*.png"))) == 1
        assert not logger or list(folder.glob("checkpoints/*.ckpt"))
        assert kept == {path: path.read_bytes() for path in kept}
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(list(tmp_path.rglob("*.ckpt"))) == 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .*checkpoints exists and")
def test_a_run_of_known_id_goes_on_in_its_folder(tmp_path: Path, scene_cache: Path) -> None:
    for steps in (2, 3):
        run = trainer(
            tmp_path, max_steps=steps, logger=Remote(tmp_path / "runs", "a1"), enable_checkpointing=True,
            callbacks=[ModelCheckpoint(save_last=True)],
        )  # fmt: skip
        with nullcontext() if steps == 3 else pytest.warns(UserWarning, match="no last checkpoint available"):
            run.fit(tiny_module(), tiny_scene(scene_cache), ckpt_path="last")
        assert [path.name for path in (run_folder(run) / "checkpoints").glob("last*")] == ["last.ckpt"]
    assert run.ckpt_path == str(tmp_path / "runs/project/a1/checkpoints/last.ckpt")


def test_a_mere_test_leaves_the_figures_of_training(tmp_path: Path, scene_cache: Path) -> None:
    module, scene, written = tiny_module(), tiny_scene(scene_cache), []
    for fits in (True, False):
        run = trainer(tmp_path, max_steps=2, logger=Remote(tmp_path / "runs", "a1"), callbacks=[RunResults(str(fits))])
        if fits:
            run.fit(module, scene)
        run.test(module, datamodule=scene, verbose=False)
        written.append(json.loads((run_folder(run) / "results.json").read_text()))
    assert written[0]["steps"] == 2
    assert written[0]["training_seconds"] > 0
    assert written[1] == {**written[0], "recipe": "False"}


@pytest.mark.parametrize("callback", [ImageLogger, RunResults])
def test_a_folder_that_takes_no_files_is_an_error_before_training(
    tmp_path: Path, scene_cache: Path, callback: type[L.Callback]
) -> None:
    (tmp_path / "lightning_logs").write_text("in the way")
    run = trainer(tmp_path, max_steps=3, callbacks=[callback()])
    with pytest.raises(OSError, match=r"run's folder.*default_root_dir.*nothing can be written there.*lightning_logs"):
        run.fit(tiny_module(), tiny_scene(scene_cache))
    assert run.global_step == 0


def test_a_read_only_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:  # root may write anywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("lightning_nerf.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="nothing can be written there, Permission denied"):
        run_folder(trainer(tmp_path))


def test_pictures_of_one_name_are_views_of_their_own(tmp_path: Path) -> None:
    """A picture that two frames name, and one whose name differs by its suffix."""

    def rename(content: dict[str, Any]) -> None:
        for frame, name in zip(content["frames"], ["r_0.png", "r_0.png", "r_0.jpg", "r_3.png", "sub/r_0.png"], strict=True):
            frame["file_path"] = f"test/{name}"

    write_split(tmp_path, "train")
    write_split(tmp_path, "test", 5, change=rename)
    (tmp_path / "test/sub").mkdir()
    (tmp_path / "test/r_1.png").rename(tmp_path / "test/sub/r_0.png")
    (tmp_path / "test/r_2.png").rename(tmp_path / "test/r_0.jpg")
    data = BlenderData(tmp_path)
    run = trainer(
        tmp_path, callbacks=[PSNRLogger(), ImageLogger(n_views=5), RunResults()], logger=CSVLogger(tmp_path, "runs")
    )
    (scores,) = run.test(tiny_module(), data, verbose=False)
    results = json.loads((run_folder(run) / "results.json").read_text())
    assert results["images"] == len(results["psnr_per_image"]) == 5
    assert results["psnr"] == pytest.approx(scores["test/psnr"], abs=1e-4)
    assert len(list((run_folder(run) / "images").iterdir())) == 5
    run.predict(tiny_module(), data)
    assert len(list((run_folder(run) / "predictions").iterdir())) == 5
