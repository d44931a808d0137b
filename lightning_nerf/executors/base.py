"""The interface of an executor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


class Executor(ABC):
    """Runs what a training step and its callbacks do on the device. A strategy owns one; ``NeRFModule.executor`` finds it.

    In a script and in a recipe, :class:`~lightning_nerf.strategies.ExecutorStrategy` gives one to the Trainer. A subclass
    implements :meth:`step` and :meth:`run`.

    What it runs takes tensors and gives tensors: no host synchronisation, no logging, and nothing in Python that differs
    from step to step, since it may be recorded once and repeated.
    """

    replayed: bool = False
    """Whether this batch's step was replayed, its backward pass included; only the strategies of CUDA graphs ask."""

    @abstractmethod
    def step(self, module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of a :class:`~lightning_nerf.modules.NeRFModule`: its loss and the scalars beside it.

        In the simplest case ``module.name_step()``, which keys all draws, and then ``module.step_loss(batch)``.

        Args:
            module: in the middle of a fit.
            batch: a RayBatch, or None where the module draws its rays.

        Returns:
            Loss and logs. The tensors are good until the next step; clone what you keep.
        """

    @abstractmethod
    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        """Call ``fn(*reads)``, which changes tensors of the module in place, before or after a step.

        Args:
            name: calls of one name do the same to the same tensors; all that differs from call to call is on the device.
            fn: reads nothing in Python that changes while the name stays.
            reads: those of the last step's outputs that ``fn`` reads.
        """

    def recapture(self) -> None:  # noqa: B027
        """Say that a Python value which the step reads has changed. Tensors may be changed in place without a word."""

    def watch_backward(self) -> AbstractContextManager[Any]:
        """Goes around an eager backward pass; only the strategies of CUDA graphs ask."""
        return nullcontext()
