"""A fit on a GPU, where the CPU's tests cannot look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = pytest.mark.gpu


class NoSynchronisation(L.Callback):
    """From a few steps on, whatever makes the host wait for the device is an error."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.steps = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.after:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps = batch_idx + 1

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_training_step_does_not_synchronise(tmp_path: Path, scene_cache: Path, precision: str) -> None:
    watch = NoSynchronisation(after=5)
    fit = trainer(tmp_path, accelerator="gpu", devices=1, precision=precision, max_steps=60, callbacks=[watch])
    try:
        fit.fit(tiny_module(), tiny_scene(scene_cache))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps == 60


def test_fits_and_renders(tmp_path: Path, scene_cache: Path) -> None:
    module, scene = tiny_module(), tiny_scene(scene_cache)
    fit = trainer(tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=200)
    fit.fit(module, scene)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    module.to("cuda")
    render = module.render_view(scene.views("test"), 0)
    assert torch.isfinite(render.rgb).all()
