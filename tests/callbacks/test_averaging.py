from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_nerf.modules import InstantNGP
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = [
    pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning has it from 2.6 on"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
STEPS = 40
KINDS: dict[str, dict[str, Any]] = {
    "EMAWeightAveraging": {"decay": 0.9},
    "EMAWeightAveraging, now and then": {"decay": 0.9, "update_every_n_steps": 7},
    "WeightAveraging": {"use_buffers": True},
}


class Buffers(Callback):
    """Buffers at each validation view and each step's start."""

    def __init__(self) -> None:
        self.evaluated: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.steps.append(buffers(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.evaluated.append(buffers(pl_module))


def buffers(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def averaging(kind: str) -> Callback:
    return getattr(callbacks, kind.partition(",")[0])(**KINDS[kind])


def module() -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module()


def fit(folder: Path, cache: Path, given: list[Callback], m: InstantNGP, **options: Any) -> L.Trainer:
    t = trainer(
        folder, **{"max_steps": STEPS, "val_check_interval": 15, "limit_val_batches": 1, **options}, callbacks=given
    )
    t.fit(m, tiny_scene(cache))
    return t


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_is_no_weight_survives_averaging(kind: str, tmp_path: Path, scene_cache: Path) -> None:
    """The grid, the key and all counters are, in each step and validation, those of a run without averaging."""
    plain, averaged = Buffers(), Buffers()
    expected, m = module(), module()
    fit(tmp_path, scene_cache, [plain], expected)
    files = ModelCheckpoint(tmp_path / "files", filename="{step}", every_n_train_steps=20, save_top_k=-1)
    t = fit(tmp_path, scene_cache, [averaging(kind), averaged, files], m, enable_checkpointing=True)
    assert len(plain.steps) == STEPS
    assert len(plain.evaluated) >= 2
    for a, b in [
        *zip(averaged.steps, plain.steps, strict=True),
        *zip(averaged.evaluated, plain.evaluated, strict=True),
        (buffers(m), buffers(expected)),
    ]:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    weights, raw = dict(m.named_parameters()), dict(expected.named_parameters())
    assert any(not torch.equal(weights[name], raw[name]) for name in raw)  # weights are averaged
    saved = torch.load(tmp_path / "files/step=20.ckpt", weights_only=True)["state_dict"]
    at_20 = plain.steps[20]
    assert torch.equal(saved["estimator.binaries"], at_20["estimator.binaries"])
    assert int(saved["n_rays"]) == int(at_20["n_rays"])
    assert t.global_step == STEPS


def test_buffers_that_would_be_averaged_are_named(
    tmp_path: Path, scene_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, scene_cache, [averaging("WeightAveraging")], module(), max_steps=1)
        assert (
            "WeightAveraging averages weights only, as with use_buffers=False: buffers (the occupancy grid" in caplog.text
        )
        caplog.clear()
        fit(tmp_path, scene_cache, [callbacks.WeightAveraging(use_buffers=False)], module(), max_steps=1)
    assert "averages weights only" not in caplog.text


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_with_averaging_is_bit_equal(tmp_path: Path, scene_cache: Path) -> None:
    kind = "EMAWeightAveraging, now and then"
    whole, resumed = module(), module()
    files = ModelCheckpoint(tmp_path / "files", filename="{step}", every_n_train_steps=20, save_top_k=-1)
    options: dict[str, Any] = {"limit_val_batches": 0, "enable_checkpointing": True}
    fit(tmp_path, scene_cache, [averaging(kind), files], whole, **options)
    t = trainer(tmp_path, callbacks=[averaging(kind)], max_steps=STEPS)
    t.fit(resumed, tiny_scene(scene_cache), ckpt_path=tmp_path / "files/step=20.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
