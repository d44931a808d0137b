"""A fit that sees nothing is told why."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_nerf.callbacks import RayBudget
from lightning_nerf.estimators import OccupancyGrid
from tests.scenes import tiny_module, tiny_scene, trainer

NOTHING_SEEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a box elsewhere": ({"aabb": [[50.0, 50, 50], [51, 51, 51]]}, {}, r"no ray meets the scene's box, \(50, 50, 50\)"),
    "near beyond the scene": ({"near": 100.0, "far": 200.0}, {}, r"none between near = 100 and far = 200; .*near <= \d"),
    "far before the scene": ({"near": 0.01, "far": 0.1}, {}, r"none between near = 0.01 and far = 0.1; .*far >= \d"),
    "step longer than the box": ({}, {"step_size": 50.0}, r"step_size = 50 is longer than .* step_size = 0.00\d"),
    "capacity": ({}, {"samples_per_step": 1}, r"samples_per_step = 1 is less"),
}


@pytest.mark.parametrize("row", NOTHING_SEEN)
@pytest.mark.parametrize("steps", [3, 30])
def test_a_fit_that_sees_nothing_is_told_why_early_and_once(
    row: str, steps: int, tmp_path: Path, scene_cache: Path
) -> None:
    data, model, said = NOTHING_SEEN[row]
    if "step_size" in model:
        model = {"estimator": OccupancyGrid(resolution=16, warmup_steps=16, **model)}

    class Steps(L.Callback):
        done = 0
        told: int | None = None

        def on_train_batch_end(self, *_: Any) -> None:
            self.done += 1
            if any("no step had a sample" in str(w.message) for w in caught) and self.told is None:
                self.told = self.done

    counted = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(tmp_path, max_steps=steps, callbacks=[RayBudget(), counted])
        fit.fit(tiny_module(**model), tiny_scene(scene_cache, **data))
    (message,) = [str(w.message) for w in caught if "no step had a sample" in str(w.message)]
    assert re.search(said, message), message
    assert counted.told == (8 if steps == 30 else None)
