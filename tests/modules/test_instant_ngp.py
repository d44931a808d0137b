from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_nerf.callbacks import OccupancyGridUpdate, RayBudget
from lightning_nerf.cameras.cameras import image_rays
from lightning_nerf.capabilities import states
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.modules import InstantNGP
from lightning_nerf.ops.draw_rays import draw_rays
from lightning_nerf.optim import FusedAdam
from lightning_nerf.renderers import VolumeRenderer
from lightning_nerf.types import FieldOutput, Placement, Pruning, RayBatch, Rays, Render
from tests.scenes import tiny_module, tiny_scene, trainer


class Losses(L.Callback):
    """Keeps what every step said."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append({name: float(value) for name, value in outputs.items()})


def attached(module: InstantNGP, scene, tmp_path: Path) -> InstantNGP:
    """The module as it is in the middle of a fit, for tests that call its parts."""
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(module, scene)
    return module


def some_rays(module: InstantNGP, n: int) -> RayBatch:
    """Training rays that reach through the whole scene."""
    pixels = module.datamodule.scene("train").pixels()
    bounds = pixels.bounds.new_tensor([0.0, 10.0]).expand_as(pixels.bounds)
    return draw_rays(pixels._replace(bounds=bounds), module.key, n)


def test_fit_learns_and_fills_its_budget(tmp_path: Path, scene_cache: Path) -> None:
    seen = Losses()
    module = tiny_module()
    trainer(tmp_path, max_steps=300, callbacks=[seen]).fit(module, tiny_scene(scene_cache))
    assert len(seen.steps) == 300
    first, last = seen.steps[:10], seen.steps[-10:]
    assert sum(s["mse"] for s in last) < 0.5 * sum(s["mse"] for s in first)
    fill = sum(s["n_samples"] for s in seen.steps[-40:]) / 40 / module.samples_per_step
    assert 0.85 < fill <= 1
    assert all(s["n_samples"] <= module.samples_per_step for s in seen.steps)


def test_two_runs_are_equal_to_the_bit(tmp_path: Path, scene_cache: Path) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        module = tiny_module()
        trainer(tmp_path, max_steps=12).fit(module, tiny_scene(scene_cache))
        states.append(module.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_capacity_does_not_change_loss_or_gradients(tmp_path: Path, scene_cache: Path) -> None:
    module = attached(tiny_module(samples_per_step=16384, initial_rays=48), tiny_scene(scene_cache), tmp_path)
    batch = some_rays(module, 64)
    results = []
    for capacity in (16384, 32768):
        module.samples_per_step = capacity
        module.zero_grad()
        loss, logs = module.render_loss(batch)
        assert int(logs["n_rays"]) == 64
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in module.parameters()]))
    (loss_a, grads_a), (loss_b, grads_b) = results
    assert loss_a > 0
    assert any(g.abs().max() > 0 for g in grads_a)  # equal zeros would prove nothing
    # Other capacities mean other blockings of the matrix products, nothing else: a few float32 roundings per sum.
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-5, atol=1e-7)
    for a, b in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-12)


def test_rays_that_do_not_fit_are_left_out(tmp_path: Path, scene_cache: Path) -> None:
    module = attached(tiny_module(samples_per_step=16384, initial_rays=48), tiny_scene(scene_cache), tmp_path)
    batch = some_rays(module, 64)
    everything, full = module.render_loss(batch)
    module.samples_per_step = int(full["n_samples"]) // 2
    some, half = module.render_loss(batch)
    assert 0 < int(half["n_rays"]) < 64
    assert int(half["n_samples"]) <= module.samples_per_step
    assert torch.isfinite(some)
    assert some != everything


def test_an_empty_grid_gives_a_finite_step(tmp_path: Path, scene_cache: Path) -> None:
    module = attached(tiny_module(), tiny_scene(scene_cache), tmp_path)
    module.estimator.binaries.zero_()
    module.zero_grad()
    loss, logs = module.render_loss(module.draw())
    loss.backward()
    assert torch.isfinite(loss)
    assert int(logs["n_samples"]) == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_needed_callbacks_come_by_themselves_but_never_replace_the_users(tmp_path: Path, scene_cache: Path) -> None:
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert {OccupancyGridUpdate, RayBudget} <= {type(c) for c in fit.callbacks}
    mine = OccupancyGridUpdate(every_n_steps=7)
    fit = trainer(tmp_path, max_steps=1, callbacks=[mine])
    fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert [c for c in fit.callbacks if isinstance(c, OccupancyGridUpdate)] == [mine]


def test_bf16_trains_and_keeps_parameters_in_float32(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module()
    seen = Losses()
    trainer(tmp_path, max_steps=40, precision="bf16-mixed", callbacks=[seen]).fit(module, tiny_scene(scene_cache))
    assert seen.steps[-1]["mse"] < seen.steps[0]["mse"]
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_render_is_the_same_in_chunks(tmp_path: Path, scene_cache: Path) -> None:
    module = attached(tiny_module(), tiny_scene(scene_cache), tmp_path)
    whole = module.render_view("test", 0)
    module.eval_samples = 500
    parts = module.render_view("test", 0)
    torch.testing.assert_close(whole.rgb, parts.rgb, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.n_samples, parts.n_samples)
    assert whole.rgb.shape == (24, 24, 3)

    rays = image_rays(module.datamodule.scene("test").cameras, 0)
    backgrounds = torch.rand(24 * 24, 3, generator=torch.Generator().manual_seed(0))
    behind = whole.rgb.view(-1, 3) + (1 - whole.opacity.view(-1, 1)) * (backgrounds - 1)
    torch.testing.assert_close(module.render(rays, backgrounds).rgb, behind, rtol=1e-4, atol=1e-5)


def test_a_ray_that_hits_nothing_is_the_background_exactly(tmp_path: Path, scene_cache: Path) -> None:
    module = attached(tiny_module(), tiny_scene(scene_cache), tmp_path)
    module.estimator.binaries.zero_()
    render = module.render_view("test", 0)
    assert (render.rgb == 1).all()
    assert (render.depth == 0).all()
    assert (render.opacity == 0).all()


@pytest.mark.parametrize(
    "options", [{"samples_per_step": 0}, {"initial_rays": 2000}, {"huber_delta": 0.0}, {"max_rays": -1}]
)
def test_bad_arguments_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tiny_module(**options)


def test_an_average_that_nobody_uses_is_named(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module(optimizer=lambda groups: FusedAdam(groups, ema_decay=0.9))
    with pytest.warns(UserWarning, match="EMAWeights"):
        trainer(tmp_path, max_steps=2).fit(module, tiny_scene(scene_cache))


class Sparse(OccupancyGrid):
    """May place in any way: its override states nothing."""

    def place(self, *arguments: Any, **options: Any) -> Placement:
        return super().place(*arguments, **options)


class Restated(OccupancyGrid):
    """Its override says that it prunes as the grid does."""

    @states("prunes")
    def place(self, *arguments: Any, **options: Any) -> Placement:
        return super().place(*arguments, **options)


class OtherThresholds(OccupancyGrid):
    """Prunes by thresholds of its own, which the kernel is told."""

    def thresholds(self) -> Pruning:
        return Pruning(0.5, torch.ones(()))


class Tinted(VolumeRenderer):
    def forward(self, output: FieldOutput, *arguments: Any, **options: Any) -> Render:
        return super().forward(output._replace(rgb=output.rgb * 0.5), *arguments, **options)


@pytest.mark.parametrize(
    ("kind", "renderer", "fuses"),
    [
        (OccupancyGrid, VolumeRenderer(), True),
        (Sparse, VolumeRenderer(), False),
        (Restated, VolumeRenderer(), True),
        (OtherThresholds, VolumeRenderer(), True),
        (OccupancyGrid, Tinted(), False),
        (OccupancyGrid, VolumeRenderer(early_stop_eps=0.1), False),
    ],
)
def test_frames_follow_parts_that_go_their_own_way(
    monkeypatch: pytest.MonkeyPatch, kind: type[OccupancyGrid], renderer: VolumeRenderer, fuses: bool
) -> None:
    rays = Rays(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1), torch.ones(1))
    module = tiny_module(estimator=kind(resolution=16), renderer=renderer)

    def kernel(*_: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(module.field, "frame_kernel", lambda rays: kernel)
    assert module.frames.kernel(rays) is (kernel if fuses else None)
    with deterministic_algorithms():
        assert module.frames.kernel(rays) is None
    monkeypatch.setattr(module.field, "frame_kernel", lambda rays: None)
    assert module.frames.kernel(rays) is None


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
