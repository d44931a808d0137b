"""Losses on earlier rounds of samples, in fits of estimators with and without rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.batches import truth
from lightning_nerf.estimators import Hierarchical, Uniform
from lightning_nerf.losses import Loss, Photometric, RoundPhotometric
from lightning_nerf.types import Evaluated, FieldOutput, PackedSamples, Placement, Rays, Step
from tests.executors.fits import PlainField
from tests.losses.test_losses import Kept, fit


class Rounds(Kept):
    """Keeps steps with their rounds."""

    needs_rounds = True


class Counted(PlainField):
    """Counts how often its colors are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        self.asked += 1
        return super().at_samples(rays, samples, evaluated)


class TwoRounds(Hierarchical):
    """Says twice what its round was; the second leaves out some rays."""

    def place(self, *args: Any, **options: Any) -> Placement:
        placement = super().place(*args, **options)
        (first,) = placement.rounds
        kept = first.samples.kept & (torch.arange(len(first.samples.kept)) % 3 > 0)
        return placement._replace(rounds=(first, first._replace(samples=first.samples._replace(kept=kept))))


def huber(rgb: Tensor, step: Step, counts: Tensor, delta: float) -> Tensor:
    return nn.functional.huber_loss(rgb[counts], truth(step.batch, step.background)[counts], delta=delta)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("make", "delta"), [(Hierarchical, 0.1), (TwoRounds, 0.02)])
def test_it_is_the_mean_huber_loss_of_the_rounds(
    tmp_path: Path, scene_cache: Path, make: type[Hierarchical], delta: float, own: bool
) -> None:
    kept, field = Rounds(weight=0), Counted()
    estimator = make(4, 6, field=Counted() if own else None)
    losses: list[Loss] = [Photometric(), RoundPhotometric(delta, weight=0.5), kept]
    _, said, _ = fit(tmp_path, scene_cache, field=field, estimator=estimator, losses=losses)
    assert field.asked == 3 * (1 if own else 1 + (2 if make is TwoRounds else 1))
    for step, logs in zip(kept.steps, said, strict=True):
        counts = [step.counts & each.samples.kept for each in step.rounds]
        assert len(counts) == (2 if make is TwoRounds else 1)
        assert not counts[0].all()
        terms = [huber(each.render.rgb, step, c, delta) for each, c in zip(step.rounds, counts, strict=True)]
        torch.testing.assert_close(logs["coarse_photometric"], torch.stack(terms).mean(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(logs["loss"], logs["photometric"] + 0.5 * logs["coarse_photometric"])
        assert int(logs["n_rays"]) == int(step.counts.sum())


@pytest.mark.parametrize("own", [False, True])
def test_its_gradient_reaches_the_field_that_was_rendered(tmp_path: Path, scene_cache: Path, own: bool) -> None:
    estimator = Hierarchical(4, 6, field=PlainField() if own else None)
    module, _, run = fit(tmp_path, scene_cache, field=PlainField(), estimator=estimator, losses=[RoundPhotometric()])
    groups = {group["name"] for group in run.optimizers[0].param_groups}
    assert groups == ({"field", "estimator"} if own else {"field"})
    trained = (module.estimator if own else module).get_submodule("field")
    assert all(p.grad is not None and p.grad.any() for p in trained.parameters())
    untouched = [p.grad for p in module.field.parameters()]
    assert all(grad is None or not grad.any() for grad in untouched) == own


@pytest.mark.filterwarnings("ignore:losses. Hierarchical has parameters")
@pytest.mark.parametrize("own", [False, True])
def test_where_no_loss_asks_no_round_is_rendered(tmp_path: Path, scene_cache: Path, own: bool) -> None:
    kept, field = Kept(weight=0), Counted()
    estimator = Hierarchical(4, 6, field=PlainField() if own else None)
    fit(tmp_path, scene_cache, field=field, estimator=estimator, losses=[Photometric(), kept])
    assert field.asked == len(kept.steps) == 3
    for step in kept.steps:
        assert step.rounds == ()
        assert len(step.placement.rounds) == 1


def test_a_coarse_field_that_no_loss_trains_is_warned_of(tmp_path: Path, scene_cache: Path) -> None:
    estimator = Hierarchical(4, 6, field=PlainField())
    with pytest.warns(UserWarning, match=r"losses: Hierarchical has parameters, .*; add lightning_nerf\.RoundPhotometric"):
        fit(tmp_path, scene_cache, steps=1, field=PlainField(), estimator=estimator)


@pytest.mark.parametrize("estimator", [None, Uniform(8)])
def test_an_estimator_without_rounds_is_refused(tmp_path: Path, scene_cache: Path, estimator: Uniform | None) -> None:
    parts = {} if estimator is None else {"estimator": estimator}
    words = r"estimator: the loss 'coarse_photometric' needs an earlier round of samples, but this .* such as Hierarchical"
    with pytest.raises(BadArgument, match=words):
        fit(tmp_path, scene_cache, losses=[Photometric(), RoundPhotometric()], **parts)


def test_by_itself_it_wants_rounds_in_the_step(tmp_path: Path, scene_cache: Path) -> None:
    kept = Kept()
    fit(tmp_path, scene_cache, steps=1, losses=[kept])
    with pytest.raises(BadArgument, match=r"step\.rounds: the loss 'mine' expected at least one earlier round, got none"):
        RoundPhotometric(name="mine")(kept.steps[0])
    with pytest.raises(BadArgument, match=r"delta: expected a number in \(0, inf\], got 0"):
        RoundPhotometric(delta=0)
