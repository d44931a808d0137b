from __future__ import annotations

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nerf.callbacks import NeRFProgressBar, Telemetry, TimeStrip, Turntable
from lightning_nerf.callbacks import progress as module_of_bar
from lightning_nerf.callbacks.interruption import Interruption
from tests.callbacks.test_interruption import Sends
from tests.estimators.test_times import TimedField
from tests.scenes import timed_scene, tiny_module, tiny_scene, trainer


def bar_and_run(tmp_path: Path, bar: NeRFProgressBar, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    given = [Telemetry(every_n_steps=2), *callbacks, bar]
    return trainer(tmp_path, callbacks=given, enable_progress_bar=True, **options)


@pytest.mark.parametrize("refresh_rate", [1, 100])
def test_the_bar_is_redrawn_as_time_passes(monkeypatch: pytest.MonkeyPatch, refresh_rate: int) -> None:
    """Not as steps do: in training as in a test of few views that take long."""
    now = SimpleNamespace(t=0.0)
    monkeypatch.setattr(module_of_bar.time, "monotonic", lambda: now.t)
    bar = NeRFProgressBar(refresh_rate=refresh_rate, refresh_seconds=0.5)
    drawn = []
    for terminal in (True, False):
        monkeypatch.setattr(module_of_bar, "_is_terminal", lambda terminal=terminal: terminal)
        now.t += 100
        for n, seconds in enumerate([0, 0.2, 0.4, 4.0, 6.0]):
            now.t += seconds
            drawn.append(bar._should_update(n + 1, 1000))
    assert drawn == [True, False, True, True, True, True, False, False, False, True]
    assert bar._should_update(1000, 1000)  # the last is always drawn
    assert not NeRFProgressBar(refresh_rate=0)._should_update(5, 5)


def test_each_view_of_a_test_moves_the_bar(tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = bar_and_run(tmp_path, NeRFProgressBar(refresh_rate=100, refresh_seconds=0), Turntable(n_frames=3), max_steps=2)
    module, scene = tiny_module(), tiny_scene(scene_cache)
    run.fit(module, scene)
    run.test(module, scene, verbose=False)
    captured = capsys.readouterr()
    assert re.search(r"Testing.* 1/2", captured.out)
    assert re.search(r"turntable.*3/3", captured.out)  # no silence while it is rendered


def test_the_strip_of_times_has_a_bar(tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tiny_module(field=TimedField())
    bar_and_run(tmp_path, NeRFProgressBar(), TimeStrip(n_times=3)).test(module, timed_scene(scene_cache), verbose=False)
    assert re.search(r"time strip: +\d+%\S*.*/3 ", capsys.readouterr().out)
    run = trainer(tmp_path, callbacks=[TimeStrip(n_times=3)])
    run.test(module, timed_scene(scene_cache), verbose=False)
    assert "time strip" not in capsys.readouterr().out


def test_nothing_is_drawn_where_no_bar_is_wanted(
    tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, callbacks=[Turntable(n_frames=2)], max_steps=1)
    module, scene = tiny_module(), tiny_scene(scene_cache)
    run.fit(module, scene)
    run.test(module, scene, verbose=False)
    captured = capsys.readouterr()
    assert "turntable" not in captured.out + captured.err


class Watched(NeRFProgressBar):
    """Notes what the bar says at the end of training."""

    def __init__(self) -> None:
        super().__init__(refresh_seconds=0)
        self.said: list[dict[str, Any]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.said.append(dict(self.train_progress_bar.format_dict))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_fit_has_its_total_and_the_speed_of_its_own_steps(
    tmp_path: Path, scene_cache: Path, accumulate: int
) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    first, resumed = Watched(), Watched()
    run = bar_and_run(tmp_path, first, max_steps=10, **options)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    run.save_checkpoint(tmp_path / "half.ckpt")
    assert (first.said[0]["initial"], first.said[-1]["n"]) == (0, 10 * accumulate)
    assert {said["total"] for said in first.said} == {10 * accumulate}
    run = bar_and_run(tmp_path, resumed, max_steps=14, **options)
    run.fit(tiny_module(), tiny_scene(scene_cache), ckpt_path=tmp_path / "half.ckpt")
    assert len(resumed.said) == 4 * accumulate
    assert {(said["initial"], said["total"]) for said in resumed.said} == {(10 * accumulate, 14 * accumulate)}
    assert resumed.said[-1]["n"] == 14 * accumulate


def test_a_fit_that_goes_on_behind_an_interruption_has_its_total(tmp_path: Path, scene_cache: Path) -> None:
    """Its checkpoint is of the middle of an epoch, which Lightning then does not start again."""
    interruption, resumed = Interruption(), Watched()
    sends = Sends(signal.SIGTERM, "on_train_batch_start")
    run = bar_and_run(tmp_path, Watched(), interruption, sends, max_steps=10)
    with pytest.raises(SIGTERMException), interruption.listening():
        run.fit(tiny_module(), tiny_scene(scene_cache))
    assert interruption.path is not None
    bar_and_run(tmp_path, resumed, max_steps=10).fit(tiny_module(), tiny_scene(scene_cache), ckpt_path=interruption.path)
    assert {(said["initial"], said["total"]) for said in resumed.said} == {(6, 10)}
    assert resumed.said[-1]["n"] == 10


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (200, ["fit", "%|", "28.15 dB", "1.23M rays/s", "262M samples/s", "12% occupied, val/psnr=27.12]"]),
        (80, ["20000/20000", "28.15dB", "1.23Mrays/s", "262Msmp/s", "12%occ"]),
        (66, ["20000/20000", "28.15dB", "1.23Mrays/s"]),
        (30, ["20000/20000"]),
    ],
)
def test_columns_are_whole_or_left_out(width: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bar, telemetry = NeRFProgressBar(), Telemetry()
    telemetry.latest = {
        "train/psnr": 28.15, "train/rays_per_second": 1.23e6, "train/samples_per_second": 2.62e8, "train/occupied": 0.12,
    }  # fmt: skip
    lines: list[str] = []
    fit: Any = SimpleNamespace(callbacks=[telemetry], progress_bar_metrics={}, loggers=[])
    logged = {"val/psnr": 27.123456789} if width == 200 else {}
    monkeypatch.setattr(L.pytorch.callbacks.TQDMProgressBar, "get_metrics", lambda *_: dict(logged))
    bar.train_progress_bar = bar.init_train_tqdm()
    meter = bar.train_progress_bar
    meter.reset(20000)
    meter.dynamic_ncols, meter.ncols = None, width  # type: ignore[assignment]
    monkeypatch.setattr(meter, "refresh", lambda: lines.append(str(meter)))
    meter.start_t -= 100
    bar._draw(fit, None, 20000)  # type: ignore[arg-type]
    assert len(lines[0]) <= max(width, 50)
    for word in words:
        assert word in lines[0]
    if width > 30:
        assert lines[0].endswith("]")
    meter.disable = True


class EndsLine(L.Callback):
    """What stands on the screen when the last step is over."""

    def on_train_epoch_end(self, *args: Any) -> None:
        print("what follows", flush=True)


def test_the_bar_ends_its_line_with_the_last_step(
    tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bar_and_run(tmp_path, NeRFProgressBar(refresh_seconds=0), EndsLine(), max_steps=3)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    before, _, after = capsys.readouterr().out.partition("what follows")
    assert re.search(r"3/3 [^\n\r]*\n$", before)
    assert "/3" not in after


class Fails(L.Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        if args[-1] == 2:
            raise RuntimeError("in training")


def test_an_error_has_a_line_of_its_own(tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = bar_and_run(tmp_path, NeRFProgressBar(refresh_seconds=0), Fails(), max_steps=9)
    with pytest.raises(RuntimeError, match="in training"):
        run.fit(tiny_module(), tiny_scene(scene_cache))
    out = capsys.readouterr().out
    assert "2/9" in out
    assert out.endswith("\n")
