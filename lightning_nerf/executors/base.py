"""The interface of an executor, and what it may ask of the step that it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_nerf.types import RayBatch


class Window(NamedTuple):
    """Where a batch stands among those whose gradients are accumulated for one update."""

    size: int  # batches of the window
    place: int  # of this batch, from 0


class StepProgram(Protocol):
    """The device's share of a training step, as an executor runs it; a :class:`~lightning_nerf.NeRFModule` is one.

    Everything takes tensors and gives tensors: no host synchronization, no logging, and nothing in Python that differs from
    step to step, since it may be recorded once and repeated.

    >>> from lightning_nerf import NeRFModule, StepProgram
    >>> all(hasattr(NeRFModule, name) for name in vars(StepProgram) if not name.startswith("_"))
    True
    """

    @property
    def device(self) -> torch.device:
        """Where the step runs."""
        ...

    @property
    def variant(self) -> Hashable:
        """Which of a few kinds of step this batch is, after :meth:`name_step`: steps of one kind do the same."""
        ...

    def name_step(self) -> None:
        """Have the step's key, on which all draws depend, name this batch; before :meth:`step_loss`."""
        ...

    def step_loss(self, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, or of the rays that the step draws by itself, and device scalars to log."""
        ...

    def backward_step(self, loss: Tensor) -> None:
        """The backward pass of a loss."""
        ...

    def advance_key(self) -> None:
        """Have the key name the next batch, on the device: the last thing that a captured step does."""
        ...

    def step_replayed(self) -> None:
        """Note that a replay has done :meth:`step_loss` and :meth:`advance_key`."""
        ...

    def window(self) -> Window:
        """The window of accumulation that this batch belongs to."""
        ...

    def state(self) -> nn.Module:
        """The module whose parameters and buffers the step reads by address."""
        ...

    def inputs(self) -> object:
        """The step's further inputs: an object that is replaced when its tensors are."""
        ...


class Executor(ABC):
    """Runs the device's share of a training step and of its callbacks.

    A strategy owns one; ``NeRFModule.executor`` finds it.

    In a script and in a recipe, :class:`~lightning_nerf.strategies.ExecutorStrategy` gives one to the Trainer. A subclass
    implements :meth:`step` and :meth:`run`.

    >>> from lightning_nerf import Executor
    >>> class Plain(Executor):
    ...     def step(self, program, batch):
    ...         program.name_step()
    ...         return program.step_loss(batch)
    ...     def run(self, name, fn, *reads):
    ...         fn(*reads)
    >>> Plain().replayed
    False
    """

    replayed: bool = False
    """Whether this batch's step was replayed, its backward pass included; only the strategies of CUDA graphs ask."""

    @abstractmethod
    def step(self, program: StepProgram, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch: its loss and the scalars beside it.

        In the simplest case ``program.name_step()``, which keys all draws, and then ``program.step_loss(batch)``.

        Args:
            program: in the middle of a fit.
            batch: rays with their colors, or None where the program draws its rays.

        Returns:
            Loss and logs. The tensors are good until the next step; clone what you keep.
        """

    @abstractmethod
    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        """Call ``fn(*reads)``, which changes tensors of the program in place, before or after a step.

        Args:
            name: calls of one name do the same to the same tensors; all that differs from call to call is on the device.
            fn: reads nothing in Python that changes while the name stays.
            reads: those of the last step's outputs that ``fn`` reads.
        """

    def recapture(self) -> None:  # noqa: B027
        """Say that a Python value which the step reads has changed. Tensors may be changed in place without a word."""

    def watch_backward(self) -> AbstractContextManager[object]:
        """Goes around an eager backward pass; only the strategies of CUDA graphs ask."""
        return nullcontext()

    def attach_gradients(self) -> None:  # noqa: B027
        """Give the parameters the gradients of the step that was replayed; only asked after a replay."""
