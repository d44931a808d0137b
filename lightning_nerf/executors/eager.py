"""The executor without tricks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from lightning_nerf.executors.base import Executor


class EagerExecutor(Executor):
    """Runs everything as it comes."""

    def step(self, module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Executor.step`."""
        module.name_step()
        return module.step_loss(batch)

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        """See :meth:`Executor.run`."""
        fn(*reads)


EAGER = EagerExecutor()
