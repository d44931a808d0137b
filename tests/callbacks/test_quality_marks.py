from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_nerf.callbacks import QualityMarks, RunResults
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from tests.scenes import tiny_module, tiny_scene, trainer


def fit(tmp_path: Path, cache: Path, *callbacks: L.Callback, steps: int = 12) -> Any:
    module, data = tiny_module(), tiny_scene(cache)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.3, 0.3)
    runner = trainer(tmp_path, max_steps=steps, callbacks=list(callbacks))
    runner.fit(module, datamodule=data)
    return module


class Weights(L.Callback):
    """The state after each step, and a number drawn after each."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []
        self.drawn: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        assert pl_module.training
        assert all(module.training for module in pl_module.modules())
        self.states.append([t.detach().clone() for t in pl_module.state_dict().values()])
        self.drawn.append(float(torch.rand(())))


def test_evaluation_leaves_training_as_it_was(tmp_path: Path, scene_cache: Path) -> None:
    plain, marked = Weights(), Weights()
    fit(tmp_path, scene_cache, plain)
    fit(tmp_path, scene_cache, QualityMarks([1e-9, 0.005, 0.01], views_every=1), marked)
    assert plain.drawn == marked.drawn
    for before, after in zip(plain.states, marked.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_scores_are_those_of_the_views(tmp_path: Path, scene_cache: Path) -> None:
    marks = QualityMarks([1e-9, 1e9], views_every=2)
    module = fit(tmp_path, scene_cache, marks)
    assert [(row["mark"], row["step"]) for row in marks.scores] == [(1e-9, 1), (None, 12)]  # 1e9 s are not reached
    truth = module.datamodule.scene("test").truth(0, module.eval_background())
    assert marks.scores[-1]["psnr"] == pytest.approx(float(psnr(module.render_view("test", 0).rgb, truth)), abs=1e-4)
    clock = clock_of(module.trainer)
    assert 0 < marks.scores[0]["seconds"] < marks.scores[1]["seconds"] == clock.training_seconds


def test_clocks_stand_still_meanwhile(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: QualityMarks, *_: Any) -> float:
        time.sleep(1.0)
        return 1.0

    monkeypatch.setattr(QualityMarks, "evaluate", slow)
    marks = QualityMarks([1e-9, 2e-9, 3e-9])
    begin = time.perf_counter()
    module = fit(tmp_path, scene_cache, RunResults(), marks)
    wall = time.perf_counter() - begin
    assert len(marks.scores) == 4
    assert wall > 2  # one evaluation for three marks reached at once, one at the end
    seconds = clock_of(module.trainer).training_seconds
    assert seconds is not None
    assert 0 < seconds < wall - 2
    assert marks.scores[-1]["seconds"] == seconds
    module.trainer.test(module, module.datamodule, verbose=False)
    results = json.loads((run_folder(module.trainer) / "results.json").read_text())
    assert results["training_seconds"] == seconds
    assert results["quality_marks"] == marks.scores


class Averages(L.Callback):
    """What EMAWeights promises: a context in which the module has other weights."""

    def __init__(self) -> None:
        self.entered = 0

    @contextmanager
    def averaged(self, pl_module: Any, trainer: L.Trainer) -> Iterator[None]:
        assert not pl_module.training
        raw = [p.detach().clone() for p in pl_module.parameters()]
        with torch.no_grad():
            for p in pl_module.parameters():
                p.zero_()
        self.entered += 1
        yield
        with torch.no_grad():
            for p, r in zip(pl_module.parameters(), raw, strict=True):
                p.copy_(r)


def test_the_averaged_weights_are_scored(tmp_path: Path, scene_cache: Path) -> None:
    raw, averaged, averages = QualityMarks([]), QualityMarks([]), Averages()
    fit(tmp_path, scene_cache, raw)
    module = fit(tmp_path, scene_cache, averages, averaged)
    assert averages.entered == 1
    assert averaged.scores[0]["psnr"] != raw.scores[0]["psnr"]
    assert any(bool((p != 0).any()) for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "name"),
    [({"marks_seconds": [2, 1]}, "marks_seconds"), ({"marks_seconds": [0]}, "marks_seconds"),
     ({"views_every": 0}, "views_every"), ({"split": "train"}, "split")],
)  # fmt: skip
def test_wrong_arguments_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        QualityMarks(**options)


def test_a_split_without_views_is_named(tmp_path: Path, scene_cache: Path) -> None:
    module, data = tiny_module(), tiny_scene(scene_cache, n_val=0)
    runner = trainer(tmp_path, max_steps=2, callbacks=[QualityMarks(split="val")])
    with pytest.raises(ValueError, match="the val split has no views"):
        runner.fit(module, datamodule=data)
