"""A fit on a GPU, where the CPU's tests cannot look."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

import lightning_nerf.renderers.frame as frame
from lightning_nerf.bench.frame import training_render
from lightning_nerf.callbacks import Telemetry
from lightning_nerf.callbacks.psnr import psnr
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.types import FrameKernel, Rays, Render
from tests.scenes import fused_module, tiny_module, tiny_scene, trainer

pytestmark = pytest.mark.gpu


class NoSynchronization(L.Callback):
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


@pytest.mark.parametrize("make", [tiny_module, fused_module])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_training_step_does_not_synchronize(
    tmp_path: Path, scene_cache: Path, precision: str, make: Callable[..., InstantNGP]
) -> None:
    watch = NoSynchronization(after=5)
    fit = trainer(tmp_path, accelerator="gpu", devices=1, precision=precision, max_steps=60, callbacks=[watch])
    try:
        fit.fit(make(), tiny_scene(scene_cache))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps == 60


def test_fits_and_renders(tmp_path: Path, scene_cache: Path) -> None:
    module, scene = tiny_module(), tiny_scene(scene_cache)
    fit = trainer(tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=200)
    fit.fit(module, scene)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    module.to("cuda")
    render = module.render_view("test", 0)
    assert torch.isfinite(render.rgb).all()


@pytest.mark.parametrize("samples_at_once", [2**25, 4096])
def test_frames_are_those_of_the_training_renderer(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch, samples_at_once: int
) -> None:
    """The field's own render, in one piece or with rays left for further rounds, after a fit from graphs."""
    module, scene = fused_module(eval_samples=min(samples_at_once, 2**21)), tiny_scene(scene_cache)
    run = trainer(tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=300, strategy="nerf_cuda_graph")
    run.fit(module, scene)
    module.to("cuda")
    monkeypatch.setattr(frame, "FUSED_SAMPLES", samples_at_once)
    calls: list[int] = []
    find = InstantNGPField.frame_kernel

    def counted(field: InstantNGPField, rays: Rays) -> FrameKernel | None:
        kernel = find(field, rays)
        assert kernel is not None

        def render(*arguments: Any) -> Render:
            calls.append(1)
            return kernel(*arguments)

        return render

    monkeypatch.setattr(InstantNGPField, "frame_kernel", counted)
    views, background = scene.scene("test"), module.eval_background()
    with torch.no_grad(), run.precision_plugin.forward_context():
        for i in range(views.n_views):
            truth = views.truth(i, background)
            ours = psnr(module.render_view("test", i).rgb, truth)
            as_trained = psnr(training_render(module, views.cameras.to("cuda"), i, background), truth)
            assert as_trained > 15
            assert abs(ours - as_trained) < 0.02
    assert len(calls) >= views.n_views * (1 if samples_at_once > 4096 else 2)


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_deterministic_fits_agree(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    states = []
    try:
        for _ in range(2):
            module = fused_module()
            run = trainer(
                tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=120, deterministic=True,
                strategy="nerf_cuda_graph",
            )  # fmt: skip
            run.fit(module, tiny_scene(scene_cache))
            states.append(module.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_last_reading_is_logged(tmp_path: Path, scene_cache: Path) -> None:
    logger = CSVLogger(tmp_path, name="log")
    run = trainer(
        tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=41, strategy="nerf_cuda_graph",
        logger=logger, callbacks=[Telemetry(every_n_steps=20)],
    )  # fmt: skip
    run.fit(fused_module(), tiny_scene(scene_cache))
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("train/mse")]
    assert steps == [0, 20, 40]
