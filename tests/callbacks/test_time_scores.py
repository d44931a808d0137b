"""Scores over parts of the time: in loggers and in results.json, for scenes that move alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.callbacks import PSNRLogger, RunResults
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.callbacks.view_scores import psnr_per_time, scores_of_all_ranks
from lightning_nerf.data import NeRFDataModule
from tests.data.numbered import numbered_scene
from tests.estimators.test_times import TimedField
from tests.scenes import TimedSource, tiny_module, tiny_scene, trainer

SCORES = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0, "e": 50.0, "f": 60.0}


def views(times: list[float] | None) -> Any:
    """Something with views named a, b, c, ... at these times."""
    scene = numbered_scene()
    n = 3 if times is None else len(times)
    cameras = scene.cameras.chosen([0] * n)
    return scene._replace(
        cameras=cameras._replace(times=None if times is None else torch.tensor(times)), names=list("abcdef"[:n])
    )


PARTS = {
    "a view in each part, the last at its end": ([0.0, 0.25, 0.5, 0.75, 1.0], [10.0, 20.0, 30.0, 40.0, 50.0]),
    "in any order": ([1.0, 0.0, 0.5], [20.0, None, 30.0, None, 10.0]),
    "means": ([2.0, 2.1, 2.5, 5.0, 4.9, 3.5], [20.0, None, 60.0, None, 45.0]),
    "borders count in the later part": ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 20.0, 30.0, 40.0, 55.0]),
    "borders that float32 rounds down": ([0.1, 0.3, 0.5, 0.7, 0.9, 1.1], [10.0, 20.0, 30.0, 40.0, 55.0]),
    "before zero": ([-1.0, 1.0], [10.0, None, None, None, 20.0]),
    "one moment": ([3.0, 3.0], [15.0, None, None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_each_view_counts_in_its_fifth_of_the_time(case: str) -> None:
    times, expected = PARTS[case]
    bins = psnr_per_time(views(times), SCORES)
    assert [each.name for each in bins] == [f"psnr_time_{i}" for i in range(5)]
    assert [each.psnr for each in bins] == [None if value is None else pytest.approx(value) for value in expected]
    assert sum(each.n_views for each in bins) == len(times)
    assert bins[0].first == pytest.approx(min(times))
    assert bins[-1].last == pytest.approx(max(times))
    assert [each.last for each in bins[:-1]] == [each.first for each in bins[1:]]


def test_parts_do_not_depend_on_the_views_that_are_scored() -> None:
    scene = views([0.0, 0.5, 1.0])
    some = psnr_per_time(scene, {"b": 20.0})
    assert [(each.first, each.last) for each in some] == [(e.first, e.last) for e in psnr_per_time(scene, SCORES)]
    assert [each.psnr for each in some] == [None, None, 20.0, None, None]


def test_parts_are_those_of_the_training_time() -> None:
    field = TimedField()
    scene = views([0.5, 2.5, 4.0, 9.0])
    assert [each.n_views for each in psnr_per_time(scene, SCORES, field)] == [1, 1, 1, 0, 1]  # it knows none
    field.bind_times(0.0, 5.0)
    bins = psnr_per_time(scene, SCORES, field)
    assert [each.psnr for each in bins] == [10.0, None, 20.0, None, 35.0]
    assert [(each.first, each.last) for each in bins] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    field.bind_times(3.0, 3.0)
    assert [each.n_views for each in psnr_per_time(scene, SCORES, field)] == [2, 0, 0, 0, 2]


def test_scores_in_files_and_loggers_are_of_the_training_time(tmp_path: Path, scene_cache: Path) -> None:
    source = TimedSource(24, n_train=6, n_val=3, n_test=4, cache_dir=str(scene_cache))
    module, data = tiny_module(field=TimedField()), NeRFDataModule(source, near=2.0, far=6.0)
    module.field.bind_times(2.0, 12.0)
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, "runs"), callbacks=[PSNRLogger(), RunResults()])
    run.test(module, datamodule=data, verbose=False)
    rows = json.loads((run_folder(run) / "results.json").read_text())["psnr_per_time"]
    assert [row["images"] for row in rows.values()] == [2, 2, 0, 0, 0]  # at 2, 3, 4 and 5
    assert [row["to"] for row in rows.values()] == [4, 6, 8, 10, 12]
    assert sorted(key[-1] for key in run.callback_metrics if "psnr_time" in key) == ["0", "1"]


def test_static_and_empty_splits_have_no_parts() -> None:
    assert psnr_per_time(views(None), SCORES) == psnr_per_time(views([]), SCORES) == []


def test_scores_of_two_processes_are_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(into: list[Any], own: dict[str, float]) -> None:
        into[:] = [own, {"b": 2.0, "a": 1.0}]  # the second got the first view once more, to take part in every step

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    run: Any = SimpleNamespace(world_size=2)
    assert list(scores_of_all_ranks({"a": 1.0, "c": 3.0}, run).items()) == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
    assert scores_of_all_ranks({"a": 1.0}, SimpleNamespace(world_size=1)) == {"a": 1.0}  # type: ignore[arg-type]


def fit_and_test(tmp_path: Path, module: Any, data: NeRFDataModule) -> tuple[Any, dict[str, Any]]:
    """A fit of two steps with a validation, and a test: the Trainer and results.json."""
    run = trainer(
        tmp_path, max_steps=2, limit_val_batches=2, val_check_interval=2, logger=CSVLogger(tmp_path, "runs"),
        callbacks=[PSNRLogger(), RunResults()],
    )  # fmt: skip
    run.fit(module, data)
    run.test(module, datamodule=data, verbose=False)
    return run, json.loads((run_folder(run) / "results.json").read_text())


def test_a_dynamic_scene_is_scored_over_time(tmp_path: Path, scene_cache: Path) -> None:
    source = TimedSource(24, n_train=6, n_val=3, n_test=4, cache_dir=str(scene_cache))
    module, data = tiny_module(field=TimedField()), NeRFDataModule(source, near=2.0, far=6.0)
    run, results = fit_and_test(tmp_path, module, data)
    truths = [data.scene("test").truth(i, module.eval_background()) for i in range(4)]
    scores = [float(psnr(module.render_view("test", i).rgb, truths[i])) for i in range(4)]  # at times 2, 3, 4 and 5
    parts = {"0": scores[0], "1": scores[1], "3": scores[2], "4": scores[3]}
    logged = {key: float(value) for key, value in run.callback_metrics.items() if "psnr_time" in key}
    assert logged == {f"test/psnr_time_{part}": pytest.approx(score, abs=1e-3) for part, score in parts.items()}

    rows = results["psnr_per_time"]
    assert list(rows) == [f"psnr_time_{i}" for i in range(5)]
    assert rows["psnr_time_1"] == {
        "from": pytest.approx(2.6), "to": pytest.approx(3.2), "images": 1, "psnr": pytest.approx(scores[1], abs=1e-3),
    }  # fmt: skip
    assert rows["psnr_time_2"] == {"from": pytest.approx(3.2), "to": pytest.approx(3.8), "images": 0, "psnr": None}
    with open(run_folder(run) / "metrics.csv") as file:
        columns = [name for row in csv.DictReader(file) for name, value in row.items() if "psnr_time" in name and value]
    # Two of the three validation views, at 2 and 3.5: the third and its part are left out.
    assert columns == ["val/psnr_time_0", "val/psnr_time_2", *sorted(logged)]


def test_a_static_scene_has_no_scores_over_time(tmp_path: Path, scene_cache: Path) -> None:
    run, results = fit_and_test(tmp_path, tiny_module(), tiny_scene(scene_cache))
    assert "test/psnr" in run.callback_metrics
    assert not [key for key in run.callback_metrics if "time" in key]
    assert "psnr_per_time" not in results


def test_a_test_does_not_count_the_views_of_the_validation_before(tmp_path: Path, scene_cache: Path) -> None:
    source = TimedSource(24, n_train=6, n_val=3, n_test=3, cache_dir=str(scene_cache))
    module, data = tiny_module(field=TimedField()), NeRFDataModule(source, near=2.0, far=6.0)
    run = trainer(tmp_path, limit_val_batches=3, limit_test_batches=1, callbacks=[PSNRLogger()])
    run.validate(module, data, verbose=False)
    assert sorted(key[-1] for key in run.callback_metrics if "psnr_time" in key) == ["0", "2", "4"]
    run.test(module, data, verbose=False)
    assert sorted(key[-1] for key in run.callback_metrics if "psnr_time" in key) == ["0"]
    assert data.scene("val").names == data.scene("test").names
