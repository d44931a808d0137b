"""Another way to run a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf import Executor


class OffloadExecutor(Executor):
    """Keeps what the backward pass needs in the host's memory. Counts its steps."""

    def __init__(self, pin_memory: bool = False) -> None:
        self.pin_memory = pin_memory
        self.steps = 0

    def step(self, module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps += 1
        module.name_step()
        with torch.autograd.graph.save_on_cpu(self.pin_memory):
            return module.step_loss(batch)

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        fn(*reads)
