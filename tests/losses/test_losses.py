"""Losses of a user's own beside the default one, in a fit and by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.data.batches import truth
from lightning_nerf.losses import Loss, Photometric
from lightning_nerf.modules import InstantNGP
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, RayBatch, Rays, Render, Step
from tests.scenes import tiny_module, tiny_scene, trainer


class Kept(Loss):
    """A constant loss that keeps the steps it was given."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.steps: list[Step] = []

    def forward(self, step: Step) -> Tensor:
        self.steps.append(step)
        return 0.25 + 0 * step.render.opacity.sum()


class Entropy(Kept):
    """Wants the samples' weights."""

    needs_weights = True


class Scaled(Loss):
    """Has a parameter."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, step: Step) -> Tensor:
        return (self.scale * step.render.opacity * step.counts).mean()


class Outputs(L.Callback):
    """What each step said."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append({name: value.detach().clone() for name, value in outputs.items()})


def fit(folder: Path, cache: Path, steps: int = 3, **options: Any) -> tuple[InstantNGP, list[dict[str, Tensor]], L.Trainer]:
    torch.manual_seed(0)
    module, outputs = tiny_module(**options), Outputs()
    run = trainer(folder, max_steps=steps, callbacks=[outputs])
    run.fit(module, tiny_scene(cache))
    return module, outputs.steps, run


def huber(step: Step, delta: float) -> Tensor:
    """By torch, of the rays that count."""
    counts = step.counts
    target = truth(step.batch, step.background)[counts]
    return nn.functional.huber_loss(step.render.rgb[counts], target, delta=delta)


# -- the default ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.1, 0.02])
def test_the_default_is_the_huber_loss_of_the_rays_that_count(tmp_path: Path, scene_cache: Path, delta: float) -> None:
    kept = Kept(weight=0)
    default, said, _ = fit(tmp_path, scene_cache, huber_delta=delta)
    assert [type(loss) for loss in default.losses] == [Photometric]
    assert default.losses[0].delta == delta
    _, stated, _ = fit(tmp_path, scene_cache, losses=[Photometric(delta), kept])
    for step, a, b in zip(kept.steps, said, stated, strict=True):
        assert not step.counts.all()
        torch.testing.assert_close(a["loss"], huber(step, delta), rtol=1e-5, atol=1e-7)
        for name in ("loss", "mse", "n_rays", "n_samples", "photometric"):
            assert torch.equal(a[name], b[name]), name
        assert int(a["n_rays"]) == int(step.counts.sum())


def test_it_has_no_value_and_no_gradient_where_no_ray_counts() -> None:
    n, nothing = 3, torch.empty(0)
    rgb = torch.rand(n, 3, requires_grad=True)
    samples = PackedSamples(nothing, nothing, nothing.int(), torch.zeros(n + 1).int(), torch.tensor([True, True, False]))
    rays = Rays(*[torch.zeros(n, 3)] * 2, *[torch.zeros(n)] * 2)
    batch = RayBatch(rays, torch.rand(n, 3), mask=torch.tensor([False, False, True]))
    output = FieldOutput(nothing, torch.empty(0, 3))
    render = Render(rgb, torch.zeros(n), torch.zeros(n), torch.zeros(n).int())
    step = Step(batch, torch.ones(3), Placement(samples), output, render, logs={})
    assert not step.counts.any()
    loss = Photometric()(step)
    loss.backward()
    assert loss == 0
    assert step.logs["n_rays"] == 0
    assert not rgb.grad.any()  # type: ignore[union-attr]


# -- several of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_the_sum_is_weighted_and_the_logs_are_not(tmp_path: Path, scene_cache: Path, weight: float) -> None:
    losses = [Photometric(weight=2.0), Kept(weight, name="mine"), Kept(weight)]
    _, said, _ = fit(tmp_path, scene_cache, losses=losses)
    for step in said:
        assert {"photometric", "mine", "kept", "mse", "n_rays", "n_samples", "loss"} == set(step)
        assert step["mine"] == step["kept"] == 0.25
        torch.testing.assert_close(step["loss"], 2 * step["photometric"] + weight * 0.5)


def test_without_the_photometric_loss_rays_are_still_counted(tmp_path: Path, scene_cache: Path) -> None:
    kept = Kept()
    _, said, _ = fit(tmp_path, scene_cache, losses=[kept])
    assert [int(step["n_rays"]) for step in said] == [int(step.counts.sum()) for step in kept.steps]
    assert int(said[0]["n_rays"]) == 64


@pytest.mark.parametrize(("kind", "keeps"), [(Kept, False), (Entropy, True)])
def test_weights_are_kept_where_a_loss_asks(tmp_path: Path, scene_cache: Path, kind: type[Kept], keeps: bool) -> None:
    loss = kind()
    fit(tmp_path, scene_cache, losses=[Photometric(), loss])
    assert len(loss.steps) == 3
    for step in loss.steps:
        assert (step.render.weights is not None) == keeps
        if step.render.weights is not None:
            samples = step.placement.samples
            n = int(samples.offsets[-1])
            assert n > 0
            sums = torch.zeros(len(step.render.opacity))
            sums.index_add_(0, samples.ray_indices[:n].long(), step.render.weights[:n].detach())
            torch.testing.assert_close(sums, step.render.opacity.detach(), rtol=1e-4, atol=1e-5)


# -- parameters and checkpoints ---------------------------------------------------------------------------------------


def test_a_loss_with_a_parameter_is_trained_and_saved(tmp_path: Path, scene_cache: Path) -> None:
    module, _, run = fit(tmp_path, scene_cache, losses=[Photometric(delta=0.3), Scaled(weight=0.5, name="haze")])
    groups = {group["name"]: group["params"] for group in run.optimizers[0].param_groups}
    assert set(groups) == {"field", "losses"}
    assert groups["losses"] == [module.losses[1].scale]
    assert module.losses[1].scale != 1
    assert torch.equal(module.state_dict()["losses.1.scale"], module.losses[1].scale)
    run.save_checkpoint(tmp_path / "it.ckpt")
    loaded = InstantNGP.load_from_checkpoint(tmp_path / "it.ckpt")
    assert [(type(loss), loss.name, loss.weight) for loss in loaded.losses] == [
        (Photometric, "photometric", 1.0),
        (Scaled, "haze", 0.5),
    ]
    assert loaded.losses[0].delta == 0.3
    assert torch.equal(loaded.losses[1].scale, module.losses[1].scale)


# -- what is refused --------------------------------------------------------------------------------------------------


class OldStyle(InstantNGP):
    def losses(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: tiny_module(losses=[]), ValueError, r"losses: expected a list of at least one Loss, got \[\]"),
        (lambda: tiny_module(losses=Photometric()), ValueError, "losses: expected a list of at least one Loss"),
        (lambda: tiny_module(losses=[Photometric(), 3]), TypeError, r"losses\[1\]: expected Loss, got int"),
        (lambda: tiny_module(losses=[Kept(), Kept()]), ValueError, r"losses\[1\]: .* 'kept' once more; give it name="),
        (lambda: OldStyle(), TypeError, r"OldStyle\.losses: expected Loss objects, given as losses=\[\.\.\.\]"),
        (lambda: Kept(name="loss"), ValueError, "name: expected another one than loss, mse, n_rays, n_samples, got 'loss'"),
        (lambda: Kept(name="n_samples"), ValueError, "name: expected another one"),
        (lambda: Kept(name="mse"), ValueError, "name: expected another one"),  # Photometric's, which telemetry reads
        (lambda: Kept(name=3), TypeError, "name: expected str or None, got int"),  # type: ignore[arg-type]
        (lambda: Kept(weight=-1), ValueError, r"weight: expected a number in \[0, inf\), got -1"),
        (lambda: Photometric(delta=0), ValueError, r"delta: expected a number in \(0, inf\], got 0"),
    ],
)
def test_what_is_no_loss_is_refused_by_name(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
