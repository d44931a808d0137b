from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nerf.callbacks import PSNRLogger
from lightning_nerf.callbacks.interruption import Interruption
from tests.scenes import tiny_module, tiny_scene, trainer

STEPS = 12


class Sends(L.Callback):
    """Sends a signal to this process in a hook, at a step."""

    def __init__(self, number: int, hook: str, step: int = 5) -> None:
        self.number, self.step = number, step
        setattr(self, hook, self.send)

    def send(self, run: L.Trainer, *others: Any, **options: Any) -> None:
        if run.global_step >= self.step:
            self.step = 1000
            os.kill(os.getpid(), self.number)


def fit(tmp_path: Path, cache: Path, *callbacks: L.Callback, ckpt_path: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    module = tiny_module()
    logger = CSVLogger(tmp_path, "runs")
    run = trainer(tmp_path, max_steps=STEPS, logger=logger, callbacks=list(callbacks), **options)
    run.fit(module, tiny_scene(cache), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_from_which_a_fit_ends_as_if_without_it(
    number: int, hook: str, tmp_path: Path, scene_cache: Path
) -> None:
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException), interruption.listening():
        fit(tmp_path, scene_cache, interruption, Sends(number, hook))
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert interruption.received == number
    assert interruption.path is not None
    step = 5 if hook == "on_train_batch_end" else 6
    assert interruption.path == tmp_path / f"runs/version_0/checkpoints/interrupted-step={step}.ckpt"
    resumed = fit(tmp_path, scene_cache, ckpt_path=interruption.path).state_dict()
    expected = fit(tmp_path / "whole", scene_cache).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_signal_within_a_validation_does_not_wait_for_its_end(tmp_path: Path, scene_cache: Path) -> None:
    interruption = Interruption()
    views: list[int] = []

    class Views(PSNRLogger):
        def on_validation_batch_start(self, *others: Any) -> None:
            views.append(0)

    options = {"limit_val_batches": 1.0, "val_check_interval": 4, "check_val_every_n_epoch": None}
    with pytest.raises(SIGTERMException), interruption.listening():
        fit(tmp_path, scene_cache, interruption, Sends(signal.SIGINT, "on_validation_batch_start", 4), Views(), **options)
    assert views == []
    assert interruption.path is not None
    resumed = fit(tmp_path, scene_cache, ckpt_path=interruption.path).state_dict()
    expected = fit(tmp_path / "whole", scene_cache).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_the_checkpoint_lies_beside_the_others(tmp_path: Path, scene_cache: Path) -> None:
    interruption, others = Interruption(), ModelCheckpoint(tmp_path / "mine", every_n_train_steps=2)
    with pytest.raises(SIGTERMException), interruption.listening():
        fit(
            tmp_path, scene_cache, interruption, others, Sends(signal.SIGINT, "on_train_batch_start"),
            enable_checkpointing=True,
        )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["epoch=0-step=6.ckpt", "interrupted-step=6.ckpt"]


def test_a_signal_in_the_last_step_leaves_a_checkpoint_of_it(tmp_path: Path, scene_cache: Path) -> None:
    interruption = Interruption()
    with pytest.raises(SIGTERMException), interruption.listening():
        fit(tmp_path, scene_cache, interruption, Sends(signal.SIGTERM, "on_train_batch_end", STEPS))
    assert interruption.path is not None
    assert interruption.path.name == f"interrupted-step={STEPS}.ckpt"


def test_a_second_signal_ends_the_fit_at_once(tmp_path: Path, scene_cache: Path) -> None:
    interruption = Interruption()
    twice = [Sends(signal.SIGINT, "on_train_batch_start"), Sends(signal.SIGINT, "on_before_optimizer_step")]
    with pytest.raises(SystemExit), interruption.listening():
        fit(tmp_path, scene_cache, interruption, *twice)
    assert interruption.path is None


@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
def test_before_the_first_step_a_signal_ends_the_run_without_a_checkpoint(
    hook: str, tmp_path: Path, scene_cache: Path
) -> None:
    interruption = Interruption()
    with pytest.raises(SIGTERMException), interruption.listening():
        fit(tmp_path, scene_cache, interruption, Sends(signal.SIGTERM, hook, 0))
    assert interruption.path is None
    assert not list(tmp_path.rglob("*.ckpt"))


def test_of_several_processes_the_first_one_stops_where_it_tells_the_others() -> None:
    """Behind its step it would stop alone: there the flag has to be down."""
    asked: list[bool] = []
    connector = SimpleNamespace(received_sigterm=False)
    loop = SimpleNamespace(_broadcast_sigterm_tensor=lambda: asked.append(connector.received_sigterm))
    run: Any = SimpleNamespace(
        world_size=2, training=True, fit_loop=SimpleNamespace(epoch_loop=loop), _signal_connector=connector
    )
    interruption = Interruption()
    interruption.on_train_start(run, tiny_module())
    loop._broadcast_sigterm_tensor()
    interruption._receive(signal.SIGINT, None)
    assert not connector.received_sigterm
    loop._broadcast_sigterm_tensor()
    assert asked == [False, True]
    assert not connector.received_sigterm
