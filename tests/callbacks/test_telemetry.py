from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.callbacks import Telemetry
from tests.scenes import tiny_module, tiny_scene, trainer


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_follows_what_telemetry_measures(tmp_path: Path, scene_cache: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="{step}", monitor="train/psnr", mode="max", every_n_train_steps=5)
    fit = trainer(tmp_path, max_steps=20, callbacks=[Telemetry(every_n_steps=5), best], enable_checkpointing=True)
    fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert list(tmp_path.glob("step=*.ckpt"))
    assert best.best_model_score is not None
    assert float(best.best_model_score) >= float(fit.callback_metrics["train/psnr"])


def test_early_stopping_sees_what_telemetry_measures(tmp_path: Path, scene_cache: Path) -> None:
    stop = EarlyStopping("train/psnr", mode="max", stopping_threshold=1.0)
    options: dict[str, Any] = {"val_check_interval": 5, "limit_val_batches": 1}
    fit = trainer(tmp_path, max_steps=50, callbacks=[Telemetry(every_n_steps=2), stop], **options)
    fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert fit.global_step == 5


def test_early_stopping_that_is_never_asked_is_named(tmp_path: Path, scene_cache: Path) -> None:
    stop = EarlyStopping("train/psnr", mode="max")
    fit = trainer(tmp_path, max_steps=2, callbacks=[Telemetry(every_n_steps=2), stop])
    with pytest.warns(UserWarning, match=r"EarlyStopping\(monitor='train/psnr'\).*val_check_interval"):
        fit.fit(tiny_module(), tiny_scene(scene_cache))


class Reads(L.Callback):
    """What ``metrics.csv`` holds after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(len(rows(self.folder)))


def test_metrics_are_on_disk_while_the_run_goes_on(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_nerf.callbacks.telemetry.SAVE_SECONDS", 0.0)
    reads = Reads(tmp_path)
    logger = CSVLogger(tmp_path, "csv")
    trainer(tmp_path, max_steps=6, callbacks=[Telemetry(every_n_steps=2), reads], logger=logger).fit(
        tiny_module(), tiny_scene(scene_cache)
    )
    assert reads.seen == [1, 1, 2, 2, 3, 3]


def test_metrics_are_written_seldom(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = CSVLogger.save
    monkeypatch.setattr(CSVLogger, "save", lambda self: (saved.append(1), save(self))[1])
    logger = CSVLogger(tmp_path, "csv", flush_logs_every_n_steps=10_000)
    monkeypatch.setattr("lightning_nerf.callbacks.telemetry.SAVE_SECONDS", 1000.0)
    trainer(tmp_path, max_steps=9, callbacks=[Telemetry(every_n_steps=1)], logger=logger).fit(
        tiny_module(), tiny_scene(scene_cache)
    )
    assert len(saved) <= 3  # the first reading; Lightning's own at the end
    assert len(rows(tmp_path)) == 9


KILLED = """
import os, signal, sys
from pathlib import Path
import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning_nerf.callbacks import Telemetry
from tests.scenes import tiny_module, tiny_scene, trainer

class Kills(L.Callback):
    def on_train_batch_end(self, *args):
        if args[-1] == 30:
            os.kill(os.getpid(), signal.SIGKILL)

folder, cache = map(Path, sys.argv[1:])
run = trainer(folder, max_steps=90, callbacks=[Telemetry(every_n_steps=25), Kills()], logger=CSVLogger(folder, "csv"))
run.fit(tiny_module(), tiny_scene(cache))
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_metrics_outlive_a_kill(tmp_path: Path, scene_cache: Path) -> None:
    tiny_scene(scene_cache).prepare_data()
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(scene_cache)]
    run = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert rows(tmp_path)[0]["step"] == "0"
