"""The executor without tricks."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from lightning_nerf.executors.base import Executor, StepProgram
from lightning_nerf.types import RayBatch


class EagerExecutor(Executor):
    """Runs every operation when it comes."""

    def step(self, program: StepProgram, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Executor.step`."""
        program.name_step()
        return program.step_loss(batch)

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        """See :meth:`Executor.run`."""
        fn(*reads)


EAGER = EagerExecutor()
