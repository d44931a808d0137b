from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_nerf.callbacks import EMAWeights
from lightning_nerf.checks import BadArgument
from lightning_nerf.modules import InstantNGP, WarmupDecay
from lightning_nerf.optim import FusedAdam
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
STEPS = 12


def module(**options: Any) -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module(
        optimizer=lambda groups: FusedAdam(groups, ema_decay=0.8),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, 2 * STEPS, warmup_steps=0),
        **options,
    )


def weights(m: L.LightningModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in m.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


class Spy(L.Callback):
    """Weights after each step and in each evaluation, averages after each step, and where they are in memory."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []
        self.averages: list[dict[str, Tensor]] = []
        self.evaluated: list[tuple[int, dict[str, Tensor]]] = []
        self.pointers: set[tuple[int, ...]] = set()
        self.started: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.started.append(weights(pl_module))
        self.pointers.add(tuple(p.data_ptr() for p in pl_module.parameters()))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.raw.append(weights(pl_module))
        averages = trainer.optimizers[0].averaged()  # type: ignore[attr-defined]
        self.averages.append({name: averages[p].clone() for name, p in pl_module.named_parameters()})

    def _evaluated(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.evaluated.append((trainer.global_step, weights(pl_module)))
        self.pointers.add(tuple(p.data_ptr() for p in pl_module.parameters()))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _evaluated


def fit(
    folder: Path, cache: Path, m: InstantNGP, callbacks: list[L.Callback], ckpt: Path | None = None, **options: Any
) -> Any:
    t = trainer(folder, callbacks=callbacks, **{"max_steps": STEPS, **options})
    t.fit(m, tiny_scene(cache), ckpt_path=ckpt)
    return t


def test_validation_and_all_after_the_fit_see_averaged_weights(tmp_path: Path, scene_cache: Path) -> None:
    spy, m = Spy(), module()
    t = fit(tmp_path, scene_cache, m, [EMAWeights(), spy], val_check_interval=4, limit_val_batches=1)
    assert [step for step, _ in spy.evaluated] == [4, 8, 12]
    for step, seen in spy.evaluated:
        assert same(seen, spy.averages[step - 1])
        assert not same(seen, spy.raw[step - 1])
    for step in range(1, STEPS):
        assert same(spy.started[step], spy.raw[step - 1])  # every step begins where the last ended
    assert len(spy.pointers) == 1
    assert same(weights(m), spy.averages[-1])
    spy.evaluated.clear()
    t.test(m, datamodule=tiny_scene(scene_cache), verbose=False)
    t.predict(m, datamodule=tiny_scene(scene_cache))
    t.validate(m, datamodule=tiny_scene(scene_cache), verbose=False)
    assert len(spy.evaluated) >= 3
    assert all(same(seen, spy.averages[-1]) for _, seen in spy.evaluated)


@pytest.mark.filterwarnings("ignore:the optimizer keeps averaged weights")
def test_averaging_does_not_touch_the_training(tmp_path: Path, scene_cache: Path) -> None:
    with_it, without = Spy(), Spy()
    fit(tmp_path, scene_cache, module(), [EMAWeights(), with_it], val_check_interval=3, limit_val_batches=1)
    fit(tmp_path, scene_cache, module(), [without])
    assert same(with_it.raw[-1], without.raw[-1])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # of the missing ModelCheckpoints
def test_checkpoints_hold_both_and_a_resumed_fit_is_bit_equal(tmp_path: Path, scene_cache: Path) -> None:
    """Saved in mid-training, at a validation's end, and after the fit."""
    whole = Spy()
    fit(tmp_path, scene_cache, module(), [EMAWeights(), whole], max_steps=2 * STEPS)

    batches = ModelCheckpoint(tmp_path / "batches", filename="{step}", every_n_train_steps=5, save_top_k=-1)
    validations = ModelCheckpoint(tmp_path / "validations", filename="{step}", save_on_train_epoch_end=False, save_top_k=-1)
    callbacks: list[L.Callback] = [batches, validations, EMAWeights(), Spy()]
    m = module()
    first = fit(tmp_path, scene_cache, m, callbacks, val_check_interval=6, limit_val_batches=1, enable_checkpointing=True)
    first.save_checkpoint(tmp_path / "step=12-after.ckpt")
    files = sorted(tmp_path.rglob("*.ckpt"))
    assert {f.stem for f in files} >= {"step=5", "step=10", "step=6", "step=12-after"}
    for file in files:
        step = int(file.stem.split("=")[1].split("-")[0])
        saved = torch.load(file, weights_only=True)
        assert same(saved["state_dict"], whole.averages[step - 1]), file
        assert same(saved["raw_weights"], whole.raw[step - 1]), file
        spy = Spy()
        resumed = module()
        fit(tmp_path, scene_cache, resumed, [EMAWeights(), spy], file, max_steps=2 * STEPS)
        assert same(spy.started[0], whole.raw[step - 1]), file
        assert same(spy.raw[-1], whole.raw[-1]), file
        assert same(weights(resumed), whole.averages[-1]), file

    t = trainer(tmp_path, callbacks=[EMAWeights(), spy := Spy()])
    t.test(module(), datamodule=tiny_scene(scene_cache), ckpt_path=files[0], verbose=False)
    assert same(torch.load(files[0], weights_only=True)["state_dict"], spy.evaluated[0][1])


def test_another_fit_starts_from_raw_weights_unless_they_were_set(tmp_path: Path, scene_cache: Path) -> None:
    average, spy, m = EMAWeights(), Spy(), module()
    t = fit(tmp_path, scene_cache, m, [average, spy])
    t.test(m, datamodule=tiny_scene(scene_cache), verbose=False)
    again = Spy()
    fit(tmp_path, scene_cache, m, [average, again])
    assert same(again.started[0], spy.raw[-1])
    other = Spy()
    fit(tmp_path, scene_cache, module(), [average, other])  # another module is no heir
    assert same(other.started[0], weights(module()))

    fit(tmp_path, scene_cache, m, [average, Spy()])
    given = {name: torch.full_like(p, 0.01) for name, p in m.named_parameters()}
    m.load_state_dict(given, strict=False)
    last = Spy()
    fit(tmp_path, scene_cache, m, [average, last])
    assert same(last.started[0], given)


def test_an_exception_in_validation_leaves_raw_weights(tmp_path: Path, scene_cache: Path) -> None:
    class Fails(L.Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("in validation")

    spy, m = Spy(), module()
    with pytest.raises(RuntimeError, match="in validation"):
        fit(tmp_path, scene_cache, m, [EMAWeights(), spy, Fails()], val_check_interval=4, limit_val_batches=1)
    assert same(weights(m), spy.raw[-1])


def test_averaged_is_a_context_for_callbacks(tmp_path: Path, scene_cache: Path) -> None:
    class Evaluates(L.Callback):
        seen: dict[str, Tensor] | None = None

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            before = weights(pl_module)
            with average.averaged(pl_module, trainer), average.averaged(pl_module, trainer):
                self.seen = weights(pl_module)
            assert same(weights(pl_module), before)

    average, spy, evaluates = EMAWeights(), Spy(), Evaluates()
    fit(tmp_path, scene_cache, module(), [average, spy, evaluates], max_steps=4)
    assert evaluates.seen is not None
    assert same(evaluates.seen, spy.averages[-1])


@pytest.mark.parametrize("ema", ["another optimizer", "no decay"])
def test_without_an_average_it_warns_once_and_does_nothing(tmp_path: Path, scene_cache: Path, ema: str) -> None:
    def optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups) if ema == "another optimizer" else FusedAdam(groups)

    m, average = tiny_module(optimizer=optimizer), EMAWeights()
    with pytest.warns(UserWarning, match="EMAWeights does nothing"):
        t = fit(tmp_path, scene_cache, m, [average], max_steps=2)
    before = weights(m)
    t.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert "raw_weights" not in saved
    assert same(saved["state_dict"], before)
    fit(tmp_path, scene_cache, m, [average], max_steps=2)  # no second warning: warnings are errors here


@pytest.mark.parametrize("strict", [True, False])
def test_raw_weights_that_the_module_has_no_parameters_for(tmp_path: Path, scene_cache: Path, strict: bool) -> None:
    fit(tmp_path, scene_cache, module(), [EMAWeights()]).save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    name = next(n for n, p in module().named_parameters() if p.ndim == 2)
    raw, state = saved["raw_weights"], saved["state_dict"]
    raw["renamed"] = raw.pop(name)
    m, spy = module(), Spy()
    if not strict:
        state["renamed"] = state.pop(name)
        m.strict_loading = False
    torch.save(saved, tmp_path / "renamed.ckpt")
    options: dict[str, Any] = {"ckpt": tmp_path / "renamed.ckpt", "max_steps": STEPS + 1}
    if strict:
        with pytest.raises(BadArgument, match=r"EMAWeights.*'raw_weights'.*InstantNGP has no parameters for: renamed;"):
            fit(tmp_path, scene_cache, m, [EMAWeights(), spy], **options)
        return
    before = weights(m)
    fit(tmp_path, scene_cache, m, [EMAWeights(), spy], **options)
    assert torch.equal(spy.started[0][name], before[name])
    others = {n: value for n, value in raw.items() if n != "renamed"}
    assert len(others) == len(before) - 1
    assert same(spy.started[0], others)


def test_a_checkpoint_without_average_can_be_resumed_with_one(tmp_path: Path, scene_cache: Path) -> None:
    plain = tiny_module(optimizer=lambda groups: FusedAdam(groups), lr_scheduler=lambda o: WarmupDecay(o, 2 * STEPS))
    t = fit(tmp_path, scene_cache, plain, [])
    t.save_checkpoint(tmp_path / "plain.ckpt")
    spy, m = Spy(), module()
    fit(tmp_path, scene_cache, m, [EMAWeights(), spy], tmp_path / "plain.ckpt", max_steps=2 * STEPS)
    assert same(spy.started[0], weights(plain))
    assert same(weights(m), spy.averages[-1])


def test_resuming_without_the_callback_warns(tmp_path: Path, scene_cache: Path) -> None:
    t = fit(tmp_path, scene_cache, module(), [EMAWeights()], max_steps=2)
    t.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match="EMAWeights"):
        fit(tmp_path, scene_cache, module(), [], tmp_path / "x.ckpt", max_steps=3)


def test_weights_only_checkpoints_are_refused(tmp_path: Path, scene_cache: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(MisconfigurationException, match="save_weights_only"):
        fit(tmp_path, scene_cache, module(), [EMAWeights(), checkpoint], enable_checkpointing=True)
