"""Argument checks of the public functions: each error names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(
    name: str, value: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype | tuple[torch.dtype, ...]
) -> None:
    """``shape`` mixes sizes and letters; a letter stands for any size. ``dtype``: one, or several that are accepted."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if value.dtype not in dtypes:
        raise ValueError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    fits = value.ndim == len(shape) and all(isinstance(w, str) or w == s for s, w in zip(value.shape, shape, strict=True))
    if not fits:
        raise ValueError(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(value.shape)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """All given tensors must live on the device of the first."""
    present = {name: t for name, t in tensors.items() if t is not None}
    (first, reference), *rest = present.items()
    for name, t in rest:
        if t.device != reference.device:
            raise ValueError(f"{name}: expected a tensor on {reference.device} (where {first} is), got {t.device}")
