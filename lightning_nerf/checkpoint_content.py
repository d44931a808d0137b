"""Checks of the structure of an untrusted checkpoint, before other code reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument

MOST_CONTAINERS = 1_000_000  # dicts and lists; those of a training number hundreds
MOST_NESTED = 100
MOST_EXPANDED = 2**24  # elements of a tensor with more of them than its file has numbers

_CONTAINERS = (dict, list, tuple, set, frozenset)
_SECTIONS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "state_dict": (dict, "a dict"),
    "callbacks": (dict, "a dict"),
    "loops": (dict, "a dict"),
    "optimizer_states": (list, "a list"),
    "lr_schedulers": (list, "a list"),
    "epoch": (int, "a number"),
    "global_step": (int, "a number"),
}


def check_content(content: object) -> None:
    """Raise a BadArgument where walking through all of it would take long or overflow the stack.

    Pickles may refer to one list many times, also from within itself: a file of a kilobyte can unfold to any size.
    """
    left = MOST_CONTAINERS
    stack: list[tuple[Any, int]] = [(content, 1)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0:
            raise BadArgument(f"it holds more than {MOST_CONTAINERS:,} lists and dicts, counted as often as they occur")
        if depth > MOST_NESTED:
            raise BadArgument(f"it is nested more than {MOST_NESTED} deep")
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, Tensor):
                _check_tensor(item)
            elif isinstance(item, _CONTAINERS):
                stack.append((item, depth + 1))


def check_sections(content: Mapping[str, Any]) -> None:
    """Raise a BadArgument where a part that Lightning reads is of another kind than Lightning writes."""
    for name, (kind, expected) in _SECTIONS.items():
        if name in content and (not isinstance(content[name], kind) or isinstance(content[name], bool)):
            raise BadArgument(f"{name}: expected {expected}, got {type(content[name]).__name__}")
    if "state_dict" not in content:
        raise BadArgument("state_dict: expected the weights, got none")
    for name in ("state_dict", "callbacks", "loops"):
        odd = next((key for key in content.get(name, ()) if not isinstance(key, str)), None)
        if odd is not None:
            raise BadArgument(f"{name}: expected names as keys, got {odd!r:.100}")


def resembling(value: Any, model: Any, name: str) -> Any:
    """``value`` in the structure of ``model``: a dict with its keys, and numbers where it has numbers.

    Args:
        value: of a checkpoint.
        model: what the part that is to take ``value`` says of itself now; None stands for anything plain.
        name: of ``value`` in messages.

    Keys beyond the model's are left out: what takes the value may set attributes by them. A missing key gets the model's.

    Raises:
        BadArgument: something is of another kind.
    """
    if isinstance(model, dict):
        _expect(isinstance(value, dict), name, "a dict", value)
        return {key: resembling(value.get(key, m), m, f"{name}.{key}") for key, m in model.items()}
    if isinstance(model, (list, tuple)):
        _expect(isinstance(value, (list, tuple)) and len(value) == len(model), name, f"{len(model)} values", value)
        pairs = zip(value, model, strict=True)
        return type(model)(resembling(v, m, f"{name}[{i}]") for i, (v, m) in enumerate(pairs))
    if isinstance(model, bool):
        _expect(isinstance(value, bool), name, "true or false", value)
    elif isinstance(model, float) and isinstance(value, Tensor):
        _expect(value.numel() == 1, name, "a number", value)
    elif isinstance(model, (int, float)):
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), name, "a number", value)
        unbounded = model in (math.inf, -math.inf) and value == value  # such as the best of no values
        _expect(abs(value) <= 2**53 or unbounded, name, "a number that is not NaN or beyond 2^53", value)
        _expect(isinstance(value, int) or isinstance(model, float), name, "an integer", value)
        _expect(value >= 0 or model < 0 or isinstance(model, float), name, "a number >= 0", value)
    elif isinstance(model, str):
        _expect(isinstance(value, str), name, "a string", value)
    elif isinstance(model, Tensor):
        _expect(isinstance(value, Tensor) and value.numel() == model.numel(), name, "a tensor of its size", value)
    return value


def _expect(good: bool, name: str, expected: str, value: object) -> None:
    if not good:
        shown = f"{value!r:.100}" if isinstance(value, (int, float, str)) else type(value).__name__
        raise BadArgument(f"{name}: expected {expected}, got {shown}")


def _check_tensor(tensor: Tensor) -> None:
    if tensor.device.type == "meta":
        raise BadArgument("it holds a tensor without values")
    if tensor.layout is not torch.strided:
        return
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > max(MOST_EXPANDED, 8 * stored):
        raise BadArgument(f"it holds a tensor of {tensor.numel():,} elements, of which the file has {stored:,}")
