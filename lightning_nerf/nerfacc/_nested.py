"""Whether a grid's boxes are nested by doubling, as the march's kernels need them, without a wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class _Seen(NamedTuple):
    values: Tensor  # [M, 6] float32 on the host
    version: int | None
    nested: bool


_seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # aabbs -> _Seen


def with_nesting(aabbs: Tensor, find: Callable[[bool], T]) -> T:
    """``find(nested)``, where ``nested`` tells whether each of the boxes [M, 6] is the one before, twice as large.

    ``find`` has to wait for the device once, as one that finds samples does for their number.
    """
    if len(aabbs) == 1:
        return find(True)
    seen: _Seen | None = _seen.get(aabbs)
    if seen is None or not aabbs.is_cuda or seen.version != _version(aabbs):
        return find(_look(aabbs, seen).nested)
    # A change by way of aabbs.data leaves no trace but the values. They are copied while ``find`` works, and it waits
    # longer than the copy takes; where they have changed, it works once more.
    values = aabbs.detach().to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(aabbs.device).record_event()
    found = find(seen.nested)
    copied.synchronize()
    return found if torch.equal(values, seen.values) else find(_look(aabbs, seen).nested)


def _look(aabbs: Tensor, seen: _Seen | None) -> _Seen:
    values = aabbs.detach().cpu()
    if seen is None or not torch.equal(values, seen.values):
        seen = _seen[aabbs] = _Seen(values.clone(), _version(aabbs), are_nested(values))
    elif aabbs.is_cuda:
        seen = _seen[aabbs] = seen._replace(version=_version(aabbs))
    return seen


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def are_nested(aabbs: Tensor) -> bool:
    """Is each of the boxes [M, 6] the one before, twice as large about the same center, up to rounding?"""
    low, high = aabbs.double().reshape(-1, 2, 3).unbind(1)
    center, half = 0.5 * (low + high), 0.5 * (high - low)
    scale = 2.0 ** torch.arange(len(aabbs), dtype=torch.float64, device=aabbs.device)[:, None]
    error = torch.maximum((center - center[0]).abs(), (half - half[0] * scale).abs())
    # Corners in float32, each with a few roundings.
    return bool((error <= 2**-21 * (center[0].abs() + half[0] * scale)).all())
