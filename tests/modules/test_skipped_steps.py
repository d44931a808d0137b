"""Steps of a fit that change no weight, moment or average, and are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_nerf.callbacks import EMAWeights, OccupancyGridUpdate, RayBudget, Telemetry
from lightning_nerf.modules import WarmupDecay
from lightning_nerf.optim import FusedAdam
from tests.executors.fits import Empty, InfAt, fit, plain_module
from tests.scenes import tiny_scene, trainer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "FusedAdam": lambda groups: FusedAdam(groups, ema_decay=0.9),
    "Adam": torch.optim.Adam,
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
}


class States(L.Callback):
    """What each batch leaves: weights, and all that the optimizer keeps; and the rates."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.state: list[list[Tensor]] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])
        kept = [v for p in pl_module.parameters() for v in optimizer.state[p].values() if isinstance(v, Tensor)]
        self.state.append([v.clone() for v in kept])
        self.rates.append(optimizer.param_groups[0]["lr"])

    def unchanged(self) -> list[int]:
        """The batches that left everything as it was."""
        return [i for i in range(1, len(self.weights)) if self._same(i, self.weights) and self._same(i, self.state)]

    def moved(self) -> list[int]:
        """The batches that changed weights."""
        return [i for i in range(1, len(self.weights)) if not self._same(i, self.weights)]

    def _same(self, i: int, values: list[list[Tensor]]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(values[i - 1], values[i], strict=True))


def run(folder: Path, cache: Path, kind: str, field: Any = None, **options: Any) -> tuple[States, Telemetry, L.Trainer]:
    module = plain_module(
        *(() if field is None else (field,)),
        optimizer=OPTIMIZERS[kind],
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, 8, warmup_steps=0),
    )
    states, telemetry = States(), Telemetry(every_n_steps=1)
    callbacks = [OccupancyGridUpdate(every_n_steps=1000), RayBudget(every_n_steps=1000), *options.pop("callbacks", [])]
    if kind == "FusedAdam":
        callbacks.append(EMAWeights())
    defaults = {"strategy": "auto", "max_steps": 8, "callbacks": [*callbacks, states, telemetry]}
    _, _, done = fit(folder, cache, "cpu", module=module, **{**defaults, **options})
    return states, telemetry, done


@pytest.mark.parametrize("why", ["infinite colors", "no samples"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bad_step_changes_nothing_and_is_counted(tmp_path: Path, scene_cache: Path, kind: str, why: str) -> None:
    bad = {"field": lambda: InfAt(3)} if why == "infinite colors" else {"callbacks": [Empty({3})]}
    states, telemetry, done = run(tmp_path, scene_cache, kind, **bad)
    assert states.unchanged() == [3]
    assert len(states.moved()) == 6
    assert telemetry.latest["train/skipped_steps"] == 1
    assert done.global_step == 8
    assert states.rates[-1] < states.rates[3] < 1.0  # the schedule goes on
    assert all(torch.isfinite(t).all() for t in (*states.weights[-1], *states.state[-1]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_window_is_skipped_if_all_its_batches_are_empty(tmp_path: Path, scene_cache: Path, kind: str) -> None:
    states, telemetry, _ = run(
        tmp_path, scene_cache, kind, callbacks=[Empty({2, 5, 8, 9})], accumulate_grad_batches=2, max_steps=6
    )
    assert states.moved() == [1, 3, 5, 7, 11]
    assert 9 in states.unchanged()
    assert telemetry.latest["train/skipped_steps"] == 1


def test_a_step_that_says_nothing_of_samples_is_made(tmp_path: Path, scene_cache: Path) -> None:
    def training_step(batch: Any, batch_idx: int) -> dict[str, Tensor]:
        module.name_step()
        loss, logs = module.render_loss()
        return {"loss": loss, **logs}

    module = plain_module(optimizer=FusedAdam)
    module.training_step = training_step  # type: ignore[method-assign, assignment]
    states = States()
    trainer(tmp_path, max_steps=4, callbacks=[states]).fit(module, tiny_scene(scene_cache))
    assert states.moved() == [1, 2, 3]


def test_the_first_step_may_be_a_bad_one(tmp_path: Path, scene_cache: Path) -> None:
    states, telemetry, _ = run(tmp_path, scene_cache, "Adam", lambda: InfAt(0))
    assert len(states.moved()) == 7
    assert telemetry.latest["train/skipped_steps"] == 1


@pytest.mark.parametrize("why", ["infinite colors", "no samples"])
def test_a_grad_scaler_skips_as_well(tmp_path: Path, scene_cache: Path, why: str) -> None:
    """And takes no empty step for an overflow."""
    bad = {"field": lambda: InfAt(3)} if why == "infinite colors" else {"callbacks": [Empty({3})]}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    states, telemetry, _ = run(tmp_path, scene_cache, "FusedAdam", **bad, plugins=[plugin])
    assert states.unchanged() == [3]
    assert telemetry.latest["train/skipped_steps"] == 1
    assert scaler.get_scale() == (2.0**9 if why == "infinite colors" else 2.0**10)


def test_a_step_that_a_grad_scaler_does_not_make_is_counted(tmp_path: Path, scene_cache: Path) -> None:
    """Its optimizer is not called at all; nor has it a say in whether the next window, an empty one, is skipped."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    bad = {"field": lambda: InfAt(3), "callbacks": [Empty({4})]}
    states, telemetry, _ = run(tmp_path, scene_cache, "Adam", **bad, plugins=[plugin])
    assert states.unchanged() == [3, 4]
    assert telemetry.latest["train/skipped_steps"] == 2
