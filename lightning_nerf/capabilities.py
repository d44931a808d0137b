"""Capabilities that a part states for a method, and that an override has to state again.

A fused kernel, say, computes exactly what ``OccupancyGrid.place`` and ``VolumeRenderer.forward`` do. The statement is kept
on the method: a subclass that overrides the method does not inherit the statement by accident, and may make it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lightning_nerf.checks import BadType

P = ParamSpec("P")
R = TypeVar("R")

_NAME = "stated_capabilities"


def states(*capabilities: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """State capabilities of a method, as a decorator.

    >>> from lightning_nerf.capabilities import has, states
    >>> class Part:
    ...     @states("captured")
    ...     def update(self) -> None: ...
    >>> class Mine(Part):
    ...     def update(self) -> None: ...
    >>> has(Part().update, "captured"), has(Mine().update, "captured")
    (True, False)
    """

    if not all(isinstance(capability, str) for capability in capabilities):
        raise BadType(f"capabilities: expected names, as in @states('prunes'), got {capabilities!r}")

    def stated(method: Callable[P, R]) -> Callable[P, R]:
        if not inspect.isfunction(method):  # what is kept on a property or a classmethod, lookup does not find
            raise BadType(f"states: expected a plain function, below any other decorator, got {type(method).__name__}")
        setattr(method, _NAME, frozenset(capabilities))
        return method

    return stated


def has(method: Callable[..., object], capability: str) -> bool:
    """Whether a method states a capability."""
    return capability in getattr(method, _NAME, ())
