"""A float16 copy of a float32 parameter, for kernels that read half precision."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_ATTRIBUTE = "half_mirror"


class HalfMirror:
    """The float16 copy of one parameter and the version of the parameter that it holds; at most one for each parameter.

    :meth:`of` finds it, :meth:`made_for` makes it. :meth:`current` renews the copy where the parameter has changed since:
    in place, so that CUDA graphs may hold its address. An optimizer that writes both sets ``writes_mirrors = True`` and
    calls :meth:`mark_written`; after the step of any other optimizer the copy is stale. Changes through ``parameter.data``
    have no version and go unseen, unless :meth:`mark_stale` is called.
    """

    def __init__(self) -> None:
        self.copy: Tensor | None = None
        self.version = -1

    @staticmethod
    def of(parameter: Tensor) -> HalfMirror | None:
        """The mirror of a parameter, if it has one."""
        return vars(parameter).get(_ATTRIBUTE)

    @staticmethod
    def made_for(parameter: nn.Parameter) -> HalfMirror:
        """The mirror of a parameter, new where there was none."""
        mirror = HalfMirror.of(parameter)
        if mirror is None:
            _watch_optimizers()
            mirror = vars(parameter)[_ATTRIBUTE] = HalfMirror()
        return mirror

    def current(self, parameter: Tensor) -> Tensor:
        """The copy, renewed where need be."""
        if self.copy is None or self.copy.device != parameter.device:
            with torch.inference_mode(False):  # a validation may come first
                self.copy = torch.empty_like(parameter, dtype=torch.float16, requires_grad=False)
            self.version = -1
        if not self.is_current(parameter):
            with torch.inference_mode(False), torch.no_grad():
                self.copy.copy_(parameter)
            self.version = parameter._version
        return self.copy

    def is_current(self, parameter: Tensor) -> bool:
        """Whether the copy holds the parameter as it is."""
        return self.copy is not None and self.version == parameter._version

    def writable(self, parameter: Tensor) -> Tensor | None:
        """The copy for an optimizer to write; None where a move left it on another device."""
        return None if self.copy is None or self.copy.device != parameter.device else self.copy

    def mark_written(self, parameter: Tensor) -> None:
        """Note that the copy was written together with the parameter."""
        self.version = parameter._version

    def mark_stale(self) -> None:
        """Have the next use renew the copy."""
        self.version = -1

    def follow(self, parameter: Tensor) -> None:
        """After the parameter was given other data: the copy is stale, and given up where it no longer fits."""
        self.mark_stale()
        if self.copy is not None and (self.copy.device != parameter.device or parameter.dtype is not torch.float32):
            self.copy = None  # else it stays: CUDA graphs hold its address

    def __reduce__(self) -> tuple[type[HalfMirror], tuple[()]]:
        return HalfMirror, ()  # a pickled parameter brings no copy along


def mirrors(parameters: Iterable[Tensor]) -> list[tuple[Tensor, HalfMirror]]:
    """The parameters that have a mirror, each with it."""
    found = ((parameter, HalfMirror.of(parameter)) for parameter in parameters)
    return [(parameter, mirror) for parameter, mirror in found if mirror is not None]


@functools.cache
def _watch_optimizers() -> None:
    """See to it that no copy outlives an optimizer's step. Versions do not tell: torch's fused optimizers leave them."""
    register_optimizer_step_post_hook(_mark_stale)


def _mark_stale(optimizer: Optimizer, args: object, kwargs: object) -> None:
    if not getattr(optimizer, "writes_mirrors", False):
        for _, mirror in mirrors(p for group in optimizer.param_groups for p in group["params"]):
            mirror.mark_stale()
