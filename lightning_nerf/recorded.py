"""Objects that know, as plain data, what their constructor was given."""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import os
import sys
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

T = TypeVar("T")

_RECORD = "_constructor_arguments"
_NUMBERS = (bool, int, float)
WRITTEN = ("cache_dir", "picture_cache")  # arguments that name places to write to
Plain = dict[str, Any]  # plain data by name, as files and checkpoints hold them


class Recorded:
    """Base of classes whose instances know what their constructor was given, in the form that LightningCLI writes.

    Subclasses do nothing for it. The record is taken before ``__init__`` runs, of the outermost call, with defaults:
    what the constructor does to its arguments does not show. It holds numbers, strings, lists, dicts and None;

    ==========================================  ====================================================================
    another :class:`Recorded`                   ``{"class_path": ..., "init_args": {...}}``, as for the object itself
    ``functools.partial`` of an optimizer or    the same, without the argument that the caller is to supply
    learning-rate scheduler
    a class, function, dtype or enum member     ``{"class_path": ...}`` alone
    a path, a device                            a string
    whatever has no name: a lambda, a class     ``{"unnamed": "what it is"}``
    within a function, a tensor, another
    module
    ==========================================  ====================================================================
    """

    # Here and not around __init__: signatures stay as written, and no subclass has to call anything.
    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Take the record."""
        instance = cast(T, object.__new__(cls))
        try:
            record = _record(instance, args, kwargs)
        except TypeError:  # __init__ will say it better; or this is a copy, which gets the original's record
            record = None
        instance.__dict__[_RECORD] = record
        return instance

    @classmethod
    def arguments_of_file(cls, arguments: Plain) -> Plain:
        """The arguments that a file may decide: all but :data:`WRITTEN`, which would have this machine written to.

        Override it where other arguments name places to write to.
        """
        return {name: value for name, value in arguments.items() if name not in WRITTEN}


def described(value: Recorded) -> Plain:
    """``{"class_path": ..., "init_args": {...}}`` of an object, or ``{"unnamed": "what it is"}``; a copy."""
    return _plain(value)


def _record(instance: Any, args: tuple[Any, ...], kwargs: Plain) -> Plain:
    signature = inspect.signature(type(instance).__init__)
    bound = signature.bind(instance, *args, **kwargs)
    explicit = set(bound.arguments)
    bound.apply_defaults()
    record: Plain = {}
    for (name, parameter), value in list(zip(signature.parameters.items(), bound.arguments.values(), strict=True))[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            record |= {key: _plain(item) for key, item in value.items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL or value:
            plain = _plain(value)
            if name in explicit or not _unnamed(plain):  # a default needs no name
                record[name] = plain
    return record


def _plain(value: object) -> Any:
    if value is None or type(value) in (*_NUMBERS, str):
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) is dict and not {"class_path", "unnamed"} & value.keys() and {type(k) for k in value} <= {str, int}:
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, torch.nn.Module):
        value = getattr(value, "_orig_mod", value)  # within the wrapper of torch.compile
    if isinstance(value, Recorded):
        record, path = vars(value).get(_RECORD), importable_path(type(value))
        if path is None or record is None:
            return {"unnamed": f"an object of class {full_name(type(value))}"}
        return {"class_path": path, "init_args": copy.deepcopy(record)}
    if isinstance(value, functools.partial):
        return _plain_partial(value)
    if isinstance(value, enum.Enum):
        path = importable_path(type(value))
        return {"class_path": f"{path}.{value.name}"} if path else {"unnamed": repr(value)}
    if isinstance(value, torch.dtype):
        return {"class_path": str(value)}
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if hasattr(value, "__qualname__"):
        path = importable_path(value)
        return {"class_path": path} if path else {"unnamed": full_name(value)}
    if isinstance(value, torch.Tensor):
        return {"unnamed": f"a tensor of shape {list(value.shape)}"}
    if isinstance(value, np.generic):
        return value.item()
    return {"unnamed": f"an object of class {full_name(type(value))}"}


def _plain_partial(value: functools.partial[Any]) -> Plain:
    target, positional = value.func, list(value.args)
    if getattr(target, "__module__", "").startswith("jsonargparse"):  # what LightningCLI makes: func(instantiator, class)
        classes = [a for a in positional if inspect.isclass(a)]
        target, positional = (classes or [target])[0], []
    path = importable_path(target)
    if path is None or positional or not is_for_training(target):
        return {"unnamed": f"a functools.partial of {full_name(target)}"}
    return {"class_path": path, "init_args": {key: _plain(item) for key, item in value.keywords.items()}}


def _unnamed(plain: object) -> bool:
    return isinstance(plain, dict) and "unnamed" in plain


def is_for_training(target: Any) -> bool:
    """Whether it is a class of optimizers or of learning-rate schedulers."""
    return inspect.isclass(target) and issubclass(target, (Optimizer, LRScheduler))


def full_name(value: Any) -> str:
    """Module and name of a class or function, for messages."""
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def importable_path(value: Any) -> str | None:
    """Where a class or function can be imported from; None: nowhere."""
    own, short = getattr(value, "__qualname__", ""), getattr(value, "__name__", "")
    # torch's built-in functions do not know where they are.
    for module, name in ((getattr(value, "__module__", None), own), ("torch", short), ("torch.nn.functional", short)):
        found: Any = sys.modules.get(module or "")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is value:
            return f"{module}.{name}"
    return None
