"""Which cells of an occupancy grid to evaluate: by the estimator without a wait for the device, or by its overrides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType, check_same_device

F = TypeVar("F", bound=Callable[..., Any])


def replaceable(method: F) -> F:
    """Mark a method that lists cells: the estimator may make the same choice in another way. Overrides have no mark."""
    method.is_replaceable = True  # type: ignore[attr-defined]
    return method


def is_replaceable(method: Callable[..., Any]) -> bool:
    """Does the method state that the estimator may make its choice in another way?"""
    return getattr(method, "is_replaceable", False)


def listed(name: str, levels: Sequence[Tensor], n_levels: int, n_cells: int, like: Tensor) -> list[Tensor]:
    """Per level, int64 indices within it that an override has listed; those of no cell are errors, on CUDA left out."""
    if len(levels) != n_levels:
        raise BadArgument(f"{name}: expected indices for each of {n_levels} levels, got {len(levels)}")
    result = []
    for cells in levels:
        if not isinstance(cells, Tensor):
            raise BadType(f"{name}: expected a tensor of indices for each level, got {type(cells).__name__}")
        if cells.is_floating_point() or cells.is_complex() or cells.dtype is torch.bool:
            raise BadArgument(f"{name}: expected integers, got {cells.dtype}")
        check_same_device(occs=like, **{name: cells})
        cells = cells.flatten().long()
        inside = (cells >= 0) & (cells < n_cells)
        if cells.device.type == "cpu" and not bool(inside.all()):
            raise BadArgument(f"{name}: expected indices in [0, {n_cells}), got {int(cells.min())} to {int(cells.max())}")
        result.append(cells if cells.device.type == "cpu" else cells[inside])
    return result
