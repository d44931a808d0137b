"""Notices what a captured graph cannot: a tensor that it reads by address was replaced, or an option changed."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nerf.optim.mirror import HalfMirror

Slots = MutableMapping[Any, Any]  # names to tensors, parameters to states


class Watch:
    """What graphs of a module and its optimizer depend on, as it is now.

    A check costs about 0.1 us for each tensor. The tensors are held meanwhile, so that no address is used twice.

    Args:
        module: its parameters and buffers, or None.
        optimizer: its state, its tensors and what it trains, or None.
        scaler: a GradScaler or None.
    """

    def __init__(self, module: nn.Module | None, optimizer: Optimizer | None = None, scaler: object = None) -> None:
        self._slots: list[tuple[Slots, object, object]] = []  # this entry must stay this object
        self._tensors: list[tuple[Tensor, int]] = []  # and this tensor stay where it is
        self._names: list[str] = []
        for path, part in module.named_modules() if module is not None else ():
            for kind, slots in (("parameter", part._parameters), ("buffer", part._buffers)):
                for name, tensor in slots.items():
                    if tensor is not None:
                        name_there = f"{path}{'.' if path else ''}{name}"
                        self._add(slots, name, tensor, f"{kind} {name_there}")
                        if (mirror := HalfMirror.of(tensor)) is not None:
                            self._add(vars(mirror), "copy", mirror.copy, f"float16 copy of {name_there}")
        for owner in (optimizer, scaler):
            if owner is not None:
                for name, value in vars(owner).items():
                    if isinstance(value, Tensor) or name in ("state", "param_groups"):
                        self._add(vars(owner), name, value, f"{name} of {type(owner).__name__}")
        if optimizer is not None:
            for parameter, state in optimizer.state.items():
                self._add(optimizer.state, parameter, state, "the optimizer's state")
                if isinstance(state, MutableMapping):
                    for name, value in state.items():
                        if isinstance(value, Tensor):
                            self._add(state, name, value, f"{name} in the optimizer's state")
        self._parameters = list(module.parameters()) if module is not None else []
        self._trained = [p.requires_grad for p in self._parameters]
        self._optimizer = optimizer
        self._n_groups = len(optimizer.param_groups) if optimizer is not None else 0

    def _add(self, slots: Slots, key: object, value: object, name: str) -> None:
        self._slots.append((slots, key, value))
        self._names.append(name)
        if isinstance(value, Tensor) and value.layout is torch.strided:
            self._tensors.append((value, value.data_ptr()))

    def broken(self) -> str | None:
        """What has changed, in words, or None."""
        for i, (slots, key, value) in enumerate(self._slots):
            if slots.get(key) is not value:
                return f"{self._names[i]} was replaced"
        for tensor, address in self._tensors:
            if tensor.data_ptr() != address:
                name = next(self._names[i] for i, slot in enumerate(self._slots) if slot[2] is tensor)
                return f"{name} was given other memory"
        if [p.requires_grad for p in self._parameters] != self._trained:
            return "requires_grad of a parameter has changed"
        if self._optimizer is not None and len(self._optimizer.param_groups) != self._n_groups:
            return "the optimizer was given more parameters"
        return None


class Options:
    """The numbers in an optimizer's parameter groups, all but the rates: a captured update burns them in."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._values = [
            (group, name, value)
            for group in optimizer.param_groups
            for name, value in group.items()
            if name not in ("params", "lr", "capturable")
        ]

    def changed(self) -> str | None:
        """The name of one that has changed, or None."""
        for group, name, value in self._values:
            now = group.get(name)
            if now is not value and (isinstance(now, Tensor) or isinstance(value, Tensor) or now != value):
                return name
        return None


class Rates:
    """Learning rates for a captured update: schedulers write floats into the groups, the graph reads device scalars.

    A float travels to the device as a kernel's argument, so nothing is copied and nothing waits; a rate that is a tensor on
    the device is copied there before each update.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._tensors = [torch.zeros((), dtype=torch.float32, device=device) for _ in optimizer.param_groups]
        self._pushed: list[float | None] = [None] * len(self._tensors)

    def push(self) -> None:
        """Send what has changed."""
        for i, group in enumerate(self._optimizer.param_groups):
            rate = group["lr"]
            if isinstance(rate, Tensor) and rate.device == self._device:  # filled in place, or replaced: not known here
                self._tensors[i].copy_(rate.reshape(()))
                self._pushed[i] = None
            elif rate is not self._pushed[i]:
                rate = float(rate)
                if rate != self._pushed[i]:
                    self._tensors[i].fill_(rate)
                self._pushed[i] = rate

    def put_in(self) -> None:
        """Put device scalars in the groups, and ``capturable`` where they have that; :meth:`put_back` undoes it."""
        self._saved = [(group["lr"], group.get("capturable")) for group in self._optimizer.param_groups]
        for group, tensor in zip(self._optimizer.param_groups, self._tensors, strict=True):
            group["lr"] = tensor
            if "capturable" in group:
                group["capturable"] = True

    def put_back(self) -> None:
        """Give the groups their own values again."""
        for group, (rate, capturable) in zip(self._optimizer.param_groups, self._saved, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = capturable
