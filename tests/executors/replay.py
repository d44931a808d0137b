"""Captures and replays without a GPU: a graph that calls its function again and writes where the first call wrote.

It has what the executor's logic has to live with: capturing does nothing, results stay where they are, options of the time
of capture hold for ever, and Python's attributes are left alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.executors import CUDAGraphExecutor, cuda_graph
from lightning_nerf.strategies import _replay

mode = "default"


def synchronize() -> None:
    """What ``item()`` does on a CUDA tensor, as far as the debug mode goes."""
    if mode == "error":
        raise RuntimeError("called a synchronizing CUDA operation")
    if mode == "warn":
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)


class FakeEvent:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeGraph:
    def __init__(self, executor: CUDAGraphExecutor, what: str, fn: Callable[[], Any], result: Any) -> None:
        self.executor, self.what, self.fn, self.result = executor, what, fn, result
        self.groups = [
            {k: copy.copy(v) for k, v in g.items() if k != "params"} for g in executor._running.optimizer.param_groups
        ]

    def replay(self) -> None:
        parameters = self.executor._parameters
        groups = self.executor._running.optimizer.param_groups
        grads = [p.grad for p in parameters]
        if self.what == "the optimizer's update":
            now = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            for group, then in zip(groups, self.groups, strict=True):
                group.update(then)
            self.fn()
            for group, values in zip(groups, now, strict=True):
                group.update(values)
            return
        result = self.fn()
        if self.what == "the training step":
            loss, logs, there = self.result
            loss.copy_(result[0])
            for name, value in result[1].items():
                logs[name].copy_(value)
            for old, new in zip(there, result[2], strict=True):
                if old is not new:
                    old.copy_(new)
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad


def _tensors(executor: CUDAGraphExecutor) -> list[Tensor]:
    module, optimizer, scaler = executor._running.program.state(), executor._running.optimizer, executor._running.scaler
    states = [v for state in optimizer.state.values() for v in state.values()]
    own = [*vars(optimizer).values(), *(vars(scaler).values() if scaler else ())]
    grads = [p.grad for p in module.parameters()]
    return [t for t in (*module.parameters(), *module.buffers(), *states, *own, *grads) if isinstance(t, Tensor)]


def replay_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the strategy believe that this CPU replays graphs."""
    executors: list[CUDAGraphExecutor] = []
    begin = CUDAGraphExecutor.begin

    def begin_(self: CUDAGraphExecutor, *args: Any, **kwargs: Any) -> None:
        executors[:] = [self]
        begin(self, *args, **kwargs)

    def capture(what: str, fn: Callable[[], Any], pool: Any, stream: Any) -> tuple[FakeGraph, Any]:
        before = [(t, t.detach().clone()) for t in _tensors(executors[0])]
        result = fn()
        for tensor, value in before:
            tensor.data.copy_(value)
        return FakeGraph(executors[0], what, fn, result), result

    def set_mode(new: int | str) -> None:
        global mode
        mode = {0: "default", 1: "warn", 2: "error"}.get(new, new)  # type: ignore[call-overload]

    monkeypatch.setattr(CUDAGraphExecutor, "begin", begin_)
    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(_replay, "_has_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: {"default": 0, "warn": 1, "error": 2}[mode])
    set_mode("default")
