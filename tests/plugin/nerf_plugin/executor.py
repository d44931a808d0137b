"""Another way to run a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from lightning_nerf import Executor, RayBatch, StepProgram


class OffloadExecutor(Executor):
    """Keeps what the backward pass needs in the host's memory. Counts its steps."""

    def __init__(self, pin_memory: bool = False) -> None:
        self.pin_memory = pin_memory
        self.steps = 0

    def step(self, program: StepProgram, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps += 1
        program.name_step()
        with torch.autograd.graph.save_on_cpu(self.pin_memory):
            return program.step_loss(batch)

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        fn(*reads)
