from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lightning_nerf.optim import FusedAdam
from lightning_nerf.optim.guard import StepGuard

PLAIN = ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"]
KINDS: dict[str, Callable[[Any], Optimizer]] = {
    **{name: getattr(torch.optim, name) for name in PLAIN},
    "Adam, amsgrad": lambda params: Adam(params, amsgrad=True, weight_decay=0.1),
    "Adam, fused": lambda params: Adam(params, fused=True),
    "Adam, foreach": lambda params: Adam(params, foreach=True),
    "SGD": lambda params: SGD(params, lr=0.1, weight_decay=0.1),
    "SGD with momentum": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "FusedAdam": lambda params: FusedAdam(params, ema_decay=0.9, weight_decay=0.1),
}
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "nothing to learn from": 0.0}


class Training:
    """Two tensors and an optimizer that skips."""

    def __init__(self, make: Callable[[Any], Optimizer], device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.randn(n, 3, generator=generator).to(device).requires_grad_() for n in (4, 5)]
        self.optimizer: Any = make(self.params)
        if not isinstance(self.optimizer, FusedAdam):
            StepGuard(self.optimizer)
        self.idle = torch.zeros((), device=device)

    def step(self, seed: int, bad: float | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        if bad is not None:
            self.params[1].grad[2, 1] = bad  # type: ignore[index]
        self.idle.fill_(bad == 0)
        self.optimizer.idle = self.idle
        self.optimizer.step()
        assert float(self.idle) == 1  # until some batch has samples

    def tensors(self) -> list[Tensor]:
        states = [value for p in self.params for value in self.optimizer.state[p].values() if isinstance(value, Tensor)]
        return [t.detach().clone() for t in (*self.params, *states)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_step_is_none(kind: str, bad: str) -> None:
    """In the middle or as the first, weights and state are to the bit what they are without it."""
    for bad_steps in ([2], [0], [0, 1]):
        good, mixed = Training(KINDS[kind]), Training(KINDS[kind])
        for step in range(4):
            if step not in bad_steps:
                good.step(step)
                mixed.step(step)
            else:
                mixed.step(step, BAD[bad])
            for a, b in zip(good.tensors(), mixed.tensors(), strict=bad_steps == [2]):  # FusedAdam may have made its zeros
                assert torch.equal(a, b)
        assert int(mixed.optimizer.skipped) == len(bad_steps)
        assert int(good.optimizer.skipped) == 0


def test_without_the_guard_adam_is_spoilt() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = Adam([p])
    p.grad = torch.full((3,), float("nan"))
    optimizer.step()
    assert p.isnan().all()


def test_large_gradients_are_no_reason() -> None:
    training = Training(KINDS["SGD"])
    before = training.tensors()
    training.step(0, 1e38)
    assert int(training.optimizer.skipped) == 0
    assert not torch.equal(training.tensors()[1], before[1])


def test_parameters_without_gradient_and_steps_without_any() -> None:
    training = Training(KINDS["Adam"])
    training.optimizer.step()
    assert not training.optimizer.state
    training.params[0].grad = torch.full_like(training.params[0], float("nan"))
    before = copy.deepcopy(training.params)
    training.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(training.params, before, strict=True))
    assert int(training.optimizer.skipped) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Adam", "Adam, fused", "SGD with momentum", "FusedAdam"])
def test_no_host_synchronization(kind: str) -> None:
    training = Training(KINDS[kind], "cuda")
    training.step(0)
    before = training.tensors()
    gradients = [torch.full_like(p, float("nan")) for p in training.params]
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for p, grad in zip(training.params, gradients, strict=True):
            p.grad = grad
        training.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    counts = 2 if kind == "Adam" else 0  # its step counts are the host's
    different = sum(not torch.equal(a, b) for a, b in zip(before, training.tensors(), strict=True))
    assert different == counts
    assert int(training.optimizer.skipped) == 1
