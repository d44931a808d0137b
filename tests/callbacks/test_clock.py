from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_nerf.callbacks import OccupancyGridUpdate, QualityMarks, RunResults, Telemetry, TrainingClock
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.modules import NeRFModule
from tests.scenes import tiny_module, tiny_scene, trainer


def clocks(run: L.Trainer) -> list[Any]:
    return [callback for callback in run.callbacks if isinstance(callback, TrainingClock)]  # type: ignore[attr-defined]


def test_a_clock_stands_still_while_halted() -> None:
    clock = TrainingClock()
    assert clock.training_seconds is None
    assert clock.seconds_so_far() == 0.0
    clock.halt()  # it does not run
    assert clock.training_seconds is None
    clock.resume()
    time.sleep(0.01)
    running = clock.seconds_so_far()
    assert running >= 0.01
    clock.halt()
    assert clock.training_seconds is not None
    assert clock.training_seconds >= running
    halted = clock.training_seconds
    time.sleep(0.01)
    clock.halt()
    assert clock.seconds_so_far() == clock.training_seconds == halted
    clock.resume()
    assert clock.seconds_so_far() >= halted
    clock.halt()
    assert halted <= clock.training_seconds < halted + 1
    assert clock.peak_memory_gib is None


def test_a_trainer_has_one_clock_for_all_who_ask(tmp_path: Path, scene_cache: Path) -> None:
    module, data = tiny_module(), tiny_scene(scene_cache)
    callbacks: list[L.Callback] = [QualityMarks([1e9]), RunResults(), Telemetry(every_n_steps=1)]
    run = trainer(tmp_path, max_steps=2, callbacks=callbacks)
    run.fit(module, data)
    (clock,) = clocks(run)
    assert clock_of(run) is clock
    first = clock.training_seconds
    assert first > 0
    run.test(module, data, verbose=False)
    assert clocks(run) == [clock]
    assert clock.training_seconds == first
    run.fit_loop.epoch_loop.max_steps = 4
    clock.training_seconds = 1000.0
    run.fit(module, data)  # a fit starts from zero
    assert clocks(run) == [clock]
    assert 0 < clock.training_seconds < 1000


def test_a_users_own_clock_is_the_one(tmp_path: Path, scene_cache: Path) -> None:
    class Mine(TrainingClock):
        pass

    mine = Mine()
    run = trainer(tmp_path, max_steps=2, callbacks=[mine])
    run.fit(tiny_module(), tiny_scene(scene_cache))
    assert clocks(run) == [mine]
    assert clock_of(run) is mine
    assert mine.training_seconds is not None


def test_a_clock_comes_before_all_other_callbacks(tmp_path: Path, scene_cache: Path) -> None:
    """Those may take their time over a checkpoint, too, and work for a step before it begins."""
    for given in ([Telemetry()], [Telemetry(), TrainingClock()]):
        run = trainer(tmp_path, max_steps=1, callbacks=given)
        run.fit(tiny_module(), tiny_scene(scene_cache))
        callbacks = run.callbacks  # type: ignore[attr-defined]
        assert callbacks[0] is clock_of(run)
        assert [type(c) for c in callbacks].count(Telemetry) == 1
        assert OccupancyGridUpdate in [type(c) for c in callbacks]


@pytest.mark.filterwarnings("ignore:the optimizer keeps averaged weights")
def test_a_clock_that_is_asked_for_in_a_hook_disturbs_no_other(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NeRFModule, "configure_callbacks", lambda self: [])  # a user's own, which adds no clock

    class Asks(L.Callback):
        def __init__(self) -> None:
            self.calls = 0

        def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
            self.calls += 1
            clock_of(trainer)

    first, second = Asks(), Asks()
    run = trainer(tmp_path, max_steps=1, callbacks=[first, second])
    run.fit(tiny_module(), tiny_scene(scene_cache))
    assert (first.calls, second.calls) == (1, 1)
    assert len(clocks(run)) == 1


def test_a_trainer_without_a_clock_gets_one(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    clock = clock_of(run)
    assert clocks(run) == [clock]
    assert clock_of(run) is clock
    assert clock_of(trainer(tmp_path)) is not clock


class Dawdles(L.Callback):
    """Takes its time over everything but steps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _dawdle(self, *_: Any) -> None:
        time.sleep(0.3)
        self.seconds += 0.3

    on_validation_batch_end = on_save_checkpoint = on_fit_start = _dawdle


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_only_training_counts(tmp_path: Path, scene_cache: Path) -> None:
    dawdles = Dawdles()
    run = trainer(
        tmp_path, max_steps=4, val_check_interval=2, limit_val_batches=1, enable_checkpointing=True,
        callbacks=[dawdles, ModelCheckpoint(tmp_path, every_n_train_steps=2)],
    )  # fmt: skip
    begin = time.perf_counter()
    run.fit(tiny_module(), tiny_scene(scene_cache))
    wall = time.perf_counter() - begin
    assert dawdles.seconds >= 4 * 0.3
    seconds = clock_of(run).training_seconds
    assert seconds is not None
    assert 0 < seconds < wall - dawdles.seconds


@pytest.mark.gpu
def test_a_clock_on_a_gpu_tells_the_peak_of_memory(tmp_path: Path, scene_cache: Path) -> None:
    run = trainer(tmp_path, accelerator="gpu", devices=1, max_steps=2)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    clock = clock_of(run)
    assert clock.peak_memory_gib is not None
    assert 0 < clock.peak_memory_gib <= torch.cuda.get_device_properties(0).total_memory / 2**30
