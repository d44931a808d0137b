"""Argument checks of the public functions: each error names the argument, what came and what was expected.

A training step makes dozens of these checks, so the path without an error builds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(
    name: str, value: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype | tuple[torch.dtype, ...]
) -> None:
    """``shape`` mixes sizes and letters; a letter stands for any size. ``dtype``: one, or several that are accepted."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype is not dtype and not (isinstance(dtype, tuple) and value.dtype in dtype):
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        raise ValueError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    sizes = value.shape
    if sizes == shape:
        return
    fits = len(sizes) == len(shape)
    if fits:
        for i, wanted in enumerate(shape):  # half the time of zip
            if not isinstance(wanted, str) and sizes[i] != wanted:
                fits = False
    if not fits:
        raise ValueError(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(sizes)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """All given tensors must live on the device of the first."""
    first, device = "", None
    for name, t in tensors.items():
        if t is None:
            continue
        if device is None:
            first, device = name, t.device
        elif t.device != device:
            raise ValueError(f"{name}: expected a tensor on {device} (where {first} is), got {t.device}")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Does autograd want to hear of what is computed from these?"""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
