"""A captured fit is an eager fit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor

from lightning_nerf.callbacks import OccupancyGridUpdate, RayBudget, Telemetry
from lightning_nerf.data.synthetic import SyntheticScene
from lightning_nerf.modules import InstantNGP
from lightning_nerf.ops.draw_rays import draw_rays
from lightning_nerf.optim import FusedAdam, HalfMirror
from tests.executors.fits import STEPS, Empty, InfAt, PlainField, assert_equal, fit, plain_module
from tests.scenes import fused_module, tiny_module, tiny_scene, trainer

Makes = Callable[[], dict[str, Any]]


def grid_often() -> dict[str, Any]:
    return {"callbacks": [OccupancyGridUpdate(every_n_steps=2), RayBudget(every_n_steps=2), Telemetry(every_n_steps=3)]}


def optimizer(kind: Any, **options: Any) -> Makes:
    return lambda: {"module": plain_module(optimizer=lambda groups: kind(groups, **options))}


CASES: dict[str, Makes] = {
    "plain": dict,
    "grid, budget, telemetry": grid_often,
    "accumulate 3": lambda: {"accumulate_grad_batches": 3, "max_steps": 10, **grid_often()},
    "accumulate 2": lambda: {"accumulate_grad_batches": 2, "max_steps": 15},
    "clip": lambda: {"gradient_clip_val": 1e-3},
    "clip by value, accumulate 2": lambda: {
        "gradient_clip_val": 1e-4,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 2,
        "max_steps": 15,
    },
    "clip, bf16, FusedAdam": lambda: {
        "module": plain_module(optimizer=lambda groups: FusedAdam(groups, lr=2**-7)),
        "gradient_clip_val": 1e-3,
        "precision": "bf16-mixed",
    },
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fused SGD": optimizer(torch.optim.SGD, lr=2**-3, momentum=0.9, fused=True),
    "SGD, which updates eagerly": optimizer(torch.optim.SGD, lr=2**-3, momentum=0.9),
    "FusedAdam": optimizer(FusedAdam, lr=2**-7, ema_decay=0.9),
    "an Inf, which FusedAdam skips": lambda: {
        "module": plain_module(lambda: InfAt(12), optimizer=lambda groups: FusedAdam(groups, lr=2**-7))
    },
    "an Inf, for which Adam's update is undone": lambda: {"module": plain_module(lambda: InfAt(12))},
    "no samples": lambda: {"callbacks": [Empty({12, 15})]},
    "no samples, FusedAdam, accumulate 2": lambda: {
        "module": plain_module(optimizer=lambda groups: FusedAdam(groups, lr=2**-7)),
        "callbacks": [Empty({12, 13, 15})],
        "accumulate_grad_batches": 2,
        "max_steps": 15,
    },
    "Adagrad, which updates eagerly": optimizer(torch.optim.Adagrad),
    "schedule of accumulation": lambda: {
        "callbacks": [GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})],
        "limit_train_batches": 9,
        "max_steps": 20,
    },
    "validation in the middle": lambda: {"val_check_interval": 7, "check_val_every_n_epoch": None, "limit_val_batches": 1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*val_dataloader:UserWarning")
@pytest.mark.filterwarnings("ignore:the optimizer keeps averaged weights")
def test_equals_an_eager_fit_to_the_bit(tmp_path: Path, scene_cache: Path, accelerator: str, case: str) -> None:
    eager, expected, slow = fit(tmp_path, scene_cache, accelerator, "auto", **CASES[case]())
    graph, seen, fast = fit(tmp_path, scene_cache, accelerator, **CASES[case]())
    assert_equal(eager, graph)
    assert [float(loss) for loss in expected.losses] == [float(loss) for loss in seen.losses]
    assert expected.counts == seen.counts
    assert seen.without_gradient == 0
    assert (expected.rates, expected.global_steps, expected.n_rays) == (seen.rates, seen.global_steps, seen.n_rays)
    assert slow.global_step == fast.global_step
    assert int(eager.samples_seen) == int(graph.samples_seen)
    assert sum(seen.replayed) > len(seen.replayed) / 3
    assert seen.replayed[-1]
    assert not any(expected.replayed)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "make"),
    [
        ("16-mixed", lambda groups: torch.optim.Adam(groups, lr=1e-2, fused=True)),
        ("16-mixed", lambda groups: FusedAdam(groups, lr=1e-2)),
        ("16-mixed", lambda groups: torch.optim.Adam(groups, lr=1e-2)),  # not fused: updates eagerly
        ("32-true", lambda groups: torch.optim.Adam(groups, lr=1e-2, foreach=True)),
        ("32-true", lambda groups: torch.optim.AdamW(groups, lr=1e-2)),
    ],
)
def test_scaled_losses_and_counts_on_the_host(tmp_path: Path, scene_cache: Path, precision: str, make: Any) -> None:
    """Also over a step whose gradients are not finite."""

    def options() -> dict[str, Any]:
        field = (lambda: InfAt(12)) if precision == "16-mixed" else PlainField
        still = [OccupancyGridUpdate(every_n_steps=1000), RayBudget(every_n_steps=1000)]  # or roundings would choose rays
        return {"module": plain_module(field, optimizer=make), "precision": precision, "callbacks": still}

    eager, _, slow = fit(tmp_path, scene_cache, "gpu", "auto", **options())
    graph, seen, fast = fit(tmp_path, scene_cache, "gpu", **options())
    for name, value in eager.state_dict().items():
        if name != "key" and value.is_floating_point():  # a foreach step computes rates on the host or on the device
            torch.testing.assert_close(graph.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)
    if precision == "16-mixed":
        assert fast.precision_plugin.scaler.get_scale() == slow.precision_plugin.scaler.get_scale() == 2.0**15
    assert seen.replayed[-1]


class CopyIsFresh(L.Callback):
    """Before each update the table's fp16 copy, which the batch has read, is the table."""

    checked = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        table = pl_module.field.position_encoding.table
        mirror = HalfMirror.of(table)
        assert mirror is not None
        assert torch.equal(mirror.copy, table.half())
        self.checked += pl_module.executor.replayed


@pytest.mark.gpu
@pytest.mark.parametrize("make", [FusedAdam, lambda groups: torch.optim.Adam(groups, lr=1e-2, fused=True)])
def test_trains_a_hash_grid_as_well(tmp_path: Path, scene_cache: Path, make: Any) -> None:
    """Its gradients are sums in no order, so losses are compared."""
    losses, fresh = [], CopyIsFresh()
    for strategy in ("auto", "nerf_cuda_graph"):
        torch.manual_seed(0)
        options = {"max_steps": 200, "precision": "bf16-mixed", "callbacks": [fresh]}
        _, seen, _ = fit(tmp_path, scene_cache, "gpu", strategy, tiny_module(optimizer=make), **options)
        losses.append(float(torch.stack(seen.losses[-40:]).mean()))
        assert losses[-1] < 0.8 * float(torch.stack(seen.losses[:10]).mean())
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    assert fresh.checked > 190


@pytest.mark.parametrize("order", [("nerf_cuda_graph", "nerf_cuda_graph"), ("nerf_cuda_graph", "auto")])
@pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory|You're resuming|Be aware that when)")
def test_a_resumed_fit_goes_on(tmp_path: Path, scene_cache: Path, accelerator: str, order: tuple[str, str]) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=13, save_top_k=-1, filename="{step}")
    whole, _, _ = fit(tmp_path, scene_cache, accelerator, order[0], callbacks=[keep], enable_checkpointing=True)
    options = {"ckpt_path": tmp_path / "step=13.ckpt", "callbacks": [], "max_steps": STEPS}
    resumed, seen, run = fit(tmp_path, scene_cache, accelerator, order[1], **options)
    assert seen.counts["on_train_batch_start"] == STEPS - 13
    assert run.global_step == STEPS
    assert_equal(whole, resumed)


# -- what happens to tensors between steps ----------------------------------------------------------------------------


class At(L.Callback):
    """Does something before the batch of this number."""

    def __init__(self, step: int, do: Callable[[L.Trainer, Any], None]) -> None:
        self.step, self.do = step, do

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.do(trainer, pl_module)


class Gradients(L.Callback):
    """Does something to the gradients before each update."""

    def __init__(self, do: Callable[[Any], None]) -> None:
        self.do = do

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.do(pl_module)


def reassign(trainer: L.Trainer, module: Any) -> None:
    module.field.brightness = module.field.brightness * 0.5


def reload(trainer: L.Trainer, module: Any) -> None:
    trainer.optimizers[0].load_state_dict(copy.deepcopy(trainer.optimizers[0].state_dict()))


def freeze(trainer: L.Trainer, module: Any) -> None:
    module.field.net[0].requires_grad_(False)


def load_weights(trainer: L.Trainer, module: Any) -> None:
    module.field.net.load_state_dict({name: value * 0.9 for name, value in module.field.net.state_dict().items()})


def edit(module: Any) -> None:
    for p in module.parameters():
        p.grad.mul_(0.5)


def replace(module: Any) -> None:
    for p in module.parameters():
        p.grad = p.grad * 0.5


def take_away(module: Any) -> None:
    module.field.net[0].weight.grad = None


@pytest.mark.parametrize(
    ("make", "recaptures"),
    [
        (lambda: At(12, reassign), True),
        (lambda: At(12, reload), True),
        (lambda: At(12, freeze), True),
        (lambda: At(12, load_weights), False),
        (lambda: Gradients(edit), False),
        (lambda: Gradients(replace), False),
        (lambda: Gradients(take_away), False),
    ],
    ids=["buffer", "optimizer state", "freeze", "weights", "edit", "replace", "take away"],
)
def test_interventions_have_their_effect(
    tmp_path: Path, scene_cache: Path, accelerator: str, make: Callable[[], L.Callback], recaptures: bool
) -> None:
    untouched, plain, _ = fit(tmp_path, scene_cache, accelerator)
    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto", callbacks=[make()])
    graph, seen, _ = fit(tmp_path, scene_cache, accelerator, callbacks=[make()])
    assert_equal(eager, graph)
    assert seen.replayed[-1]
    assert (seen.captures > plain.captures) == recaptures
    if make().__class__ is not At or make().do is not reload:
        with pytest.raises(AssertionError):
            assert_equal(untouched, graph)


class Betas(L.Callback):
    """What a cyclic schedule does to an optimizer's other numbers."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        trainer.optimizers[0].param_groups[0]["betas"] = (0.9 - 0.001 * batch_idx, 0.99)


def test_options_of_the_optimizer_are_followed(tmp_path: Path, scene_cache: Path, accelerator: str) -> None:
    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto", callbacks=[Betas()])
    graph, seen, _ = fit(tmp_path, scene_cache, accelerator, callbacks=[Betas()])
    assert_equal(eager, graph)
    assert seen.captures < 15
    assert seen.replayed[-1]


class Restless(L.Callback):
    """Replaces a buffer before each batch."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.field.brightness = pl_module.field.brightness.clone()


def test_a_tensor_that_is_replaced_all_the_time_is_named(tmp_path: Path, scene_cache: Path, accelerator: str) -> None:
    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto")
    with pytest.warns(UserWarning, match=r"runs eagerly, because buffer field\.brightness was replaced"):
        graph, seen, _ = fit(tmp_path, scene_cache, accelerator, callbacks=[Restless()])
    assert_equal(eager, graph)
    assert not seen.replayed[-1]


# -- batches of a user's own loader --------------------------------------------------------------------------------------


class Loaded(SyntheticScene):
    """Hands out ray batches from the CPU; some are smaller."""

    sizes: tuple[int, ...] = (64,)

    def train_dataloader(self) -> Any:
        pixels, key = self.scene("train").pixels(), torch.tensor([7, 0, 0])

        def batch(i: int) -> Any:
            key[2] = i
            return draw_rays(pixels, key, self.sizes[i % len(self.sizes)])

        return torch.utils.data.DataLoader([batch(i) for i in range(40)], batch_size=None)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")  # said where there are many cores
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sizes", [(64,), (64, 64, 64, 64, 64, 32, 64)])
def test_own_batches(tmp_path: Path, scene_cache: Path, accelerator: str, sizes: tuple[int, ...], accumulate: int) -> None:
    results = []
    for strategy in ("auto", "nerf_cuda_graph"):
        scene = Loaded(resolution=24, n_train=6, n_test=2, cache_dir=str(scene_cache))
        scene.sizes = sizes
        options = {"scene": scene, "accumulate_grad_batches": accumulate, "max_steps": 36 // accumulate}
        results.append(fit(tmp_path, scene_cache, accelerator, strategy, **options))
    assert_equal(results[0][0], results[1][0])
    replayed = results[1][1].replayed
    assert replayed[-1]
    assert sum(replayed) >= (30 if sizes == (64,) else 20) - 2 * accumulate


# -- beside the step -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("make", [tiny_module, fused_module])
def test_a_captured_fit_does_not_wait(tmp_path: Path, scene_cache: Path, make: Callable[..., InstantNGP]) -> None:
    """Grid updates, budget, telemetry and their captures included."""
    watch = At(5, lambda trainer, module: torch.cuda.set_sync_debug_mode("error"))
    module = make(optimizer=FusedAdam)
    steps = []

    class Steps(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            steps.append(pl_module.executor.replayed)

        def on_train_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    run = trainer(
        tmp_path, accelerator="gpu", devices=1, strategy="nerf_cuda_graph", max_steps=80, precision="bf16-mixed",
        callbacks=[watch, Steps(), Telemetry(every_n_steps=7)],
    )  # fmt: skip
    try:
        run.fit(module, tiny_scene(scene_cache))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 80
    assert all(steps[5:])


@pytest.mark.gpu
def test_memory_is_given_back(tmp_path: Path, scene_cache: Path) -> None:
    used = []
    for _ in range(3):
        module, _, _ = fit(tmp_path, scene_cache, "gpu", **grid_often())
        del module
        gc.collect()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[2] <= used[1] + 2**20


def test_values_of_python_are_read_again_on_demand(tmp_path: Path, scene_cache: Path, accelerator: str) -> None:
    def soften(trainer: L.Trainer, module: Any) -> None:
        module.losses[0].delta = 0.01
        module.executor.recapture()

    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto", callbacks=[At(12, soften)])
    graph, _, _ = fit(tmp_path, scene_cache, accelerator, callbacks=[At(12, soften)])
    assert_equal(eager, graph)


def test_a_step_that_goes_past_the_executor_is_eager(tmp_path: Path, scene_cache: Path, accelerator: str) -> None:
    module = plain_module()

    class Own(type(module)):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.name_step()
            loss, logs = self.render_loss()
            return {"loss": loss, **logs}

    module.__class__ = Own
    with pytest.warns(UserWarning, match="does not go through self.executor.step"):
        graph, seen, _ = fit(tmp_path, scene_cache, accelerator, module=module)
    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto")
    assert not any(seen.replayed)
    assert_equal(eager, graph)


def test_one_message_for_one_cause(
    tmp_path: Path, scene_cache: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_nerf.executors.cuda_graph.rank_zero_info", said.append)
    callbacks = [At(12, reassign), At(20, reassign)]
    fit(tmp_path, scene_cache, accelerator, callbacks=callbacks)
    assert said == ["CUDA graphs: captured again, because buffer field.brightness was replaced."]
