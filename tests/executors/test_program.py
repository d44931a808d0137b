"""What executors ask of a step: a NeRFModule has it, and so may anything else."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.executors import CUDAGraphExecutor, EagerExecutor, StepProgram
from lightning_nerf.executors.base import Window
from lightning_nerf.modules import NeRFModule
from lightning_nerf.types import RayBatch
from tests.executors.replay import replay_without_gpu
from tests.scenes import tiny_module


def members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


class Line(nn.Module):
    """Fits ``y = weight * x``; no Lightning, no rays."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("key", torch.zeros(3, dtype=torch.int64))
        self.named = self.replays = 0
        self.images = object()

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def name_step(self) -> None:
        self.key[2].fill_(self.named)
        self.named += 1

    def step_loss(self, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        x = 1 + self.key[2] % 5
        loss = (self.weight * x - 3.0 * x).square()
        return loss, {"x": x}

    def backward_step(self, loss: Tensor) -> None:
        loss.backward()

    def advance_key(self) -> None:
        self.key[2].add_(1)

    def step_replayed(self) -> None:
        self.replays += 1

    def window(self) -> Window:
        return Window(1, 0)

    def state(self) -> nn.Module:
        return self

    def inputs(self) -> object:
        return self.images

    @property
    def variant(self) -> Hashable:
        return None


@pytest.mark.parametrize("kind", [NeRFModule, Line])
def test_it_has_every_member_with_the_same_arguments(kind: type) -> None:
    wanted = members(StepProgram)
    assert {"device", "name_step", "step_loss", "backward_step", "advance_key", "step_replayed", "window", "state",
            "inputs", "variant"} == set(wanted)  # fmt: skip
    for name in wanted:
        asked, has = vars(StepProgram)[name], inspect.getattr_static(kind, name)
        assert isinstance(asked, property) == isinstance(has, property), name
        if not isinstance(asked, property):
            expected, given = (list(inspect.signature(f).parameters.values()) for f in (asked, has))
            assert [p.name for p in expected] == [p.name for p in given[: len(expected)]], name
            assert all(p.default is not inspect.Parameter.empty for p in given[len(expected) :]), name


def test_a_module_in_hand_is_a_program() -> None:
    module: StepProgram = tiny_module()
    assert module.state() is module
    assert module.device == torch.device("cpu")


def train(program: Line, executor: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """What strategies do with an executor, in short."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, logs = executor.step(program, None)
        assert set(logs) == {"x"}
        if executor.replayed:
            executor.attach_gradients()
        else:
            with executor.watch_backward():
                program.backward_step(loss)
        if getattr(executor, "captures_update", False):
            executor.update()
        else:
            optimizer.step()
            if isinstance(executor, CUDAGraphExecutor):
                executor.updated_eagerly()
        losses.append(float(loss.detach()))
    return losses


def test_an_eager_executor_runs_any_program() -> None:
    program, executor = Line(), EagerExecutor()
    losses = train(program, executor, torch.optim.SGD(program.parameters(), lr=0.02), 40)
    assert losses[0] == 9.0
    assert losses[-1] < 1e-3
    assert (program.named, program.replays) == (40, 0)
    ran: list[Tensor] = []
    executor.run("noted", ran.append, program.weight)
    assert ran == [program.weight]
    executor.recapture()
    executor.attach_gradients()


def test_graphs_run_any_program_as_an_eager_executor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    replay_without_gpu(monkeypatch)
    expected = Line()
    losses = train(expected, EagerExecutor(), torch.optim.Adam(expected.parameters(), lr=2**-4, fused=True), 20)
    program, executor = Line(), CUDAGraphExecutor(warmup_steps=2)
    optimizer = torch.optim.Adam(program.parameters(), lr=2**-4, fused=True)
    executor.begin(program, optimizer, optimizer.step)
    try:
        assert train(program, executor, optimizer, 20) == losses
        assert torch.equal(program.weight, expected.weight)
        assert program.replays == 18
        assert executor.captures == 2  # the step and the update
        program.images = object()
        train(program, executor, optimizer, 4)
        assert executor.captures == 4
        program.weight.data = program.weight.detach().clone()  # other memory
        train(program, executor, optimizer, 4)
        assert executor.captures == 6
    finally:
        executor.close()
