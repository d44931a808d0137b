"""Strategies whose steps an executor of the user's runs."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.executors import Executor


class ExecutorStrategy(SingleDeviceStrategy):
    """One device, on which ``executor`` runs the steps; the backward pass and the update are Lightning's.

    >>> from lightning_nerf import ExecutorStrategy
    >>> from lightning_nerf.executors import EagerExecutor
    >>> strategy = ExecutorStrategy(EagerExecutor())  # for Trainer(strategy=strategy)

    Args:
        executor: by ``class_path`` in a recipe, an object in a script.
        device: None: the Trainer's.
        accelerator, checkpoint_io, precision_plugin: as in Lightning's strategies.
    """

    def __init__(
        self,
        executor: Executor,
        device: str | torch.device | None = None,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        try:
            root = torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BadArgument(
                f"device: expected None, a name such as 'cuda:0' or a torch.device, got {device!r}"
            ) from error
        super().__init__(root, accelerator, checkpoint_io, precision_plugin)
        self.executor = _checked(executor)
        self._devices = None if device is None else [root]

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The device, once known. The Trainer sets its devices here."""
        return self._devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        if len(devices) != 1:
            one, all_of_them = self._names()
            raise BadArgument(
                f"{one} drives one device, got {len(devices)}: set devices=1, or {all_of_them} for all of them"
            )
        self._devices, self._root_device = list(devices), devices[0]

    def setup(self, trainer: L.Trainer) -> None:
        """See :meth:`Strategy.setup`; refuses several nodes."""
        nodes = lightning_names.num_nodes(trainer)
        if nodes > 1:  # Lightning would start each by itself, and all would write the same files
            one, several = self._names()
            raise BadArgument(f"{one} trains on one node, got num_nodes={nodes}: use {several}")
        super().setup(trainer)

    def _names(self) -> tuple[str, str]:
        """This strategy and the one for several devices, as messages call them."""
        return f"strategy={type(self).__name__}(...)", ExecutorDDPStrategy.__name__


class ExecutorDDPStrategy(DDPStrategy):
    """Lightning's DDPStrategy with an executor that runs each process's steps.

    Args:
        executor: by ``class_path`` in a recipe, an object in a script.
        kwargs: of DDPStrategy.
    """

    def __init__(self, executor: Executor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.executor = _checked(executor)


def _checked(executor: Executor) -> Executor:
    if not isinstance(executor, Executor):
        raise BadType(f"executor: expected a lightning_nerf.Executor, got {type(executor).__name__}")
    return executor
