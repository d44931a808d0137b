"""Errors for a user's mistakes, and the checks of public functions that raise them.

Each message names the argument, what came and what was expected. The command line shows a :class:`BadArgument` in one line,
without a traceback; any other exception is a bug and keeps its own.

A training step makes dozens of these checks, so the path without an error builds nothing.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor


class BadArgument(ValueError):
    """An argument, a file or a setting that the user has to change. Raise it from your own parts too.

    >>> from lightning_nerf import BadArgument, OccupancyGrid
    >>> try:
    ...     OccupancyGrid(resolution=0)
    ... except BadArgument as error:
    ...     print(error)
    resolution: expected an integer >= 1, got 0
    """


class BadType(BadArgument, TypeError):
    """An argument of a wrong type."""


class BadFile(OSError, BadArgument):
    """A file or folder that cannot be read or written: ``BadFile(errno, message, path)``, as of OSError."""


class MissingFile(BadFile, FileNotFoundError):
    """A file or folder that does not exist."""


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REALS = (*FLOATS, torch.int64, torch.int32)


def check_tensor(
    name: str, value: object, shape: tuple[int | str, ...], dtype: torch.dtype | tuple[torch.dtype, ...]
) -> None:
    """``shape`` mixes sizes and letters; a letter stands for any size. ``dtype``: one, or several that are accepted."""
    if not isinstance(value, Tensor):
        raise BadType(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype is not dtype and not (isinstance(dtype, tuple) and value.dtype in dtype):
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        raise BadArgument(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    sizes = value.shape
    if sizes == shape:
        return
    fits = len(sizes) == len(shape)
    if fits:
        for i, wanted in enumerate(shape):  # half the time of zip
            if not isinstance(wanted, str) and sizes[i] != wanted:
                fits = False
    if not fits:
        raise BadArgument(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(sizes)}")


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """An integer, ``low <= value <= high``; no bool."""
    integral: Any = value if isinstance(value, numbers.Integral) and not isinstance(value, bool) else low - 1
    if low <= integral and (high is None or integral <= high):
        return
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    raise _refusal(value)(f"{name}: expected {expected}, got {value!r}")


def check_number(name: str, value: object, interval: str) -> None:
    """A number in an interval such as "[0, 1)"; NaN lies in none, and what is finite must be so in float32, too."""
    number: Any = value if isinstance(value, numbers.Real) and not isinstance(value, bool) else float("nan")
    low, high = (float(limit) for limit in interval[1:-1].split(","))
    inside = low < number < high and abs(number) <= torch.finfo(torch.float32).max
    if inside or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]"):
        return
    raise _refusal(value)(f"{name}: expected a number in {interval}, got {value!r}")


def check_instance(name: str, value: object, *kinds: Any) -> None:
    """An object of one of these classes."""
    if not isinstance(value, kinds):
        names = ["None" if kind is type(None) else kind.__name__ for kind in kinds]
        raise BadType(f"{name}: expected {' or '.join(names)}, got {type(value).__name__}")


def _refusal(value: object) -> type[BadArgument]:
    return BadArgument if isinstance(value, numbers.Real) else BadType


def check_same_device(**tensors: Tensor | None) -> None:
    """All given tensors must live on the device of the first."""
    first, device = "", None
    for name, t in tensors.items():
        if t is None:
            continue
        if device is None:
            first, device = name, t.device
        elif t.device != device:
            raise BadArgument(f"{name}: expected a tensor on {device} (where {first} is), got {t.device}")


def check_ray_indices(ray_indices: Tensor, n_rays: int) -> None:
    """Indices in [0, n_rays), in any order. Their values are looked at on a CPU only: elsewhere that would synchronize."""
    if n_rays < 0:
        raise BadArgument(f"n_rays: expected >= 0, got {n_rays}")
    if len(ray_indices) == 0:
        return
    if n_rays == 0:
        raise BadArgument(f"n_rays: expected at least 1 for {len(ray_indices)} samples, got 0")
    if ray_indices.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(v) for v in ray_indices.aminmax())
        if low < 0 or high >= n_rays:
            raise BadArgument(f"ray_indices: expected 0 <= index < n_rays = {n_rays}, got {low} to {high}")


def check_returned(name: str, value: Tensor, *shapes: tuple[int, ...], device: torch.device) -> None:
    """What a user's function says of points or samples: real numbers, of one of these shapes, on their device."""
    if not isinstance(value, Tensor):
        raise BadArgument(f"{name}: expected it to return a tensor, got {type(value).__name__}")
    if tuple(value.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise BadArgument(f"{name}: expected values of shape {expected}, got {list(value.shape)}")
    if value.is_complex():
        raise BadArgument(f"{name}: expected it to return real numbers, got {value.dtype}")
    if value.device != device:
        raise BadArgument(f"{name}: expected it to return a tensor on {device}, got {value.device}")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Does autograd want to hear of what is computed from these?"""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
