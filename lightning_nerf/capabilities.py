"""Capabilities that a part states for a method, and that an override has to state again.

A fused kernel, say, computes exactly what ``OccupancyGrid.place`` and ``VolumeRenderer.forward`` do. The statement is kept
on the method: a subclass that overrides the method does not inherit the statement by accident, and may make it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

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

    def stated(method: Callable[P, R]) -> Callable[P, R]:
        setattr(method, _NAME, frozenset(capabilities))
        return method

    return stated


def has(method: Callable[..., object], capability: str) -> bool:
    """Whether a method states a capability."""
    return capability in getattr(method, _NAME, ())
