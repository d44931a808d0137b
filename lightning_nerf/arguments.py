"""Objects that know, as plain data, what their constructor was given; and objects made from such data."""

from __future__ import annotations

import copy
import enum
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_nerf.checks import BadArgument

T = TypeVar("T")

_RECORD = "_constructor_arguments"
_NUMBERS = (bool, int, float)


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


def described(value: Recorded) -> dict[str, Any]:
    """``{"class_path": ..., "init_args": {...}}`` of an object, or ``{"unnamed": "what it is"}``; a copy."""
    return _plain(value)


def build(spec: dict[str, Any], kind: type[T], **instead: Any) -> T:
    """An object from what :func:`described` said.

    Classes are imported where need be, and only subclasses of :class:`Recorded`, optimizers and schedulers are ever called:
    a file from a stranger cannot have anything else run.

    Args:
        spec: what :func:`described` returned.
        kind: what the result has to be an instance of.
        instead: objects to give the constructor in place of recorded arguments.

    Raises:
        ValueError: the class, or something that its constructor was given, has no name, is not to be found, or is something
            else than expected.
    """
    if "unnamed" in spec:
        raise BadArgument(
            f"class_path: the checkpoint has none, it is of {spec['unnamed']}; build that and load its state_dict"
        )
    target = _resolved(spec["class_path"], "class_path")
    if not (inspect.isclass(target) and issubclass(target, kind) and issubclass(target, Recorded)):
        raise BadArgument(f"class_path: expected a subclass of {_path(kind)}, got {spec['class_path']!r}")
    return _called(target, {**spec.get("init_args", {}), **instead}, "", instead)


def differences(came: Any, expected: Any, name: str) -> list[str]:
    """How a description differs from the expected one, in a line per argument; where something has no name, nothing."""
    if isinstance(came, dict) and isinstance(expected, dict):
        if "unnamed" in came or "unnamed" in expected:
            return []
        if not _same_class(came.get("class_path"), expected.get("class_path")):
            return [f"{name}: came {came.get('class_path', came)}, expected {expected.get('class_path', expected)}"]
        came, expected = came.get("init_args", came), expected.get("init_args", expected)
        keys = [k for k in expected if k != "class_path"] + [k for k in came if k not in expected]
        missing = object()
        pairs = [(k, came.get(k, missing), expected.get(k, missing)) for k in keys]
        # An argument that one of them lacks is newer, or older, than the other: nothing to compare.
        return [d for k, a, b in pairs if missing not in (a, b) for d in differences(a, b, f"{name}.{k}")]
    same = came == expected or (came != came and expected != expected)
    return [] if same else [f"{name}: came {came!r}, expected {expected!r}"]


# -- to plain data -----------------------------------------------------------------------------------------------------


def _record(instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(type(instance).__init__)
    bound = signature.bind(instance, *args, **kwargs)
    explicit = set(bound.arguments)
    bound.apply_defaults()
    record: dict[str, Any] = {}
    for (name, parameter), value in list(zip(signature.parameters.items(), bound.arguments.values(), strict=True))[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            record |= {key: _plain(item) for key, item in value.items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL or value:
            plain = _plain(value)
            if name in explicit or not _unnamed(plain):  # a default needs no name
                record[name] = plain
    return record


def _plain(value: Any) -> Any:
    if value is None or type(value) in (*_NUMBERS, str):
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) is dict and not {"class_path", "unnamed"} & value.keys() and {type(k) for k in value} <= {str, int}:
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Recorded):
        record, path = vars(value).get(_RECORD), _importable(type(value))
        if path is None or record is None:
            return {"unnamed": f"an object of class {_path(type(value))}"}
        return {"class_path": path, "init_args": copy.deepcopy(record)}
    if isinstance(value, functools.partial):
        return _plain_partial(value)
    if isinstance(value, enum.Enum):
        path = _importable(type(value))
        return {"class_path": f"{path}.{value.name}"} if path else {"unnamed": repr(value)}
    if isinstance(value, torch.dtype):
        return {"class_path": str(value)}
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if hasattr(value, "__qualname__"):
        path = _importable(value)
        return {"class_path": path} if path else {"unnamed": _path(value)}
    if isinstance(value, torch.Tensor):
        return {"unnamed": f"a tensor of shape {list(value.shape)}"}
    if isinstance(value, np.generic):
        return value.item()
    return {"unnamed": f"an object of class {_path(type(value))}"}


def _plain_partial(value: functools.partial[Any]) -> dict[str, Any]:
    target, positional = value.func, list(value.args)
    if getattr(target, "__module__", "").startswith("jsonargparse"):  # what LightningCLI makes: func(instantiator, class)
        classes = [a for a in positional if inspect.isclass(a)]
        target, positional = (classes or [target])[0], []
    path = _importable(target)
    if path is None or positional or not _is_for_training(target):
        return {"unnamed": f"a functools.partial of {_path(target)}"}
    return {"class_path": path, "init_args": {key: _plain(item) for key, item in value.keywords.items()}}


def _unnamed(plain: Any) -> bool:
    return isinstance(plain, dict) and "unnamed" in plain


def _is_for_training(target: Any) -> bool:
    return inspect.isclass(target) and issubclass(target, (Optimizer, LRScheduler))


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _importable(value: Any) -> str | None:
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


# -- from plain data ---------------------------------------------------------------------------------------------------


def _made(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_made(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "unnamed" in value:
        raise BadArgument(f"{name}: the checkpoint has no name for it, it was {value['unnamed']}; {_advice(name)}")
    if "class_path" not in value:
        return {key: _made(item, f"{name}.{key}") for key, item in value.items()}
    target = _resolved(value["class_path"], name)
    if "init_args" not in value:
        return target
    if _is_for_training(target):
        return functools.partial(target, **{k: _made(v, f"{name}.{k}") for k, v in value["init_args"].items()})
    if not (inspect.isclass(target) and issubclass(target, Recorded)):
        raise BadArgument(
            f"{name}: expected a field, estimator, renderer, optimizer or the like, got {value['class_path']!r}"
        )
    return _called(target, value["init_args"], name)


def _called(target: type[T], init_args: dict[str, Any], name: str, instead: Container[str] = ()) -> T:
    parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    by_name = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = [key for key in init_args if key not in by_name]
    if unknown and len(by_name) == len(parameters):
        raise BadArgument(f"{_inner(name, unknown[0])}: expected an argument of {_path(target)}, which takes no such")
    values = {
        key: value if key in instead else _as_written(_made(value, _inner(name, key)), by_name.get(key))
        for key, value in init_args.items()
    }
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    positional: list[Any] = []
    for p in parameters:
        if p.name in values and (p.kind is p.POSITIONAL_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and rest in values)):
            positional.append(values.pop(p.name))
    return target(*positional, *values.pop(rest, ()), **values)


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _as_written(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Plain data knows no tuples and paths; the parameter's annotation or default tells."""
    annotation = "" if parameter is None else str(parameter.annotation)
    default = None if parameter is None else parameter.default
    if isinstance(value, list) and (isinstance(default, tuple) or annotation.lower().startswith("tuple")):
        return tuple(value)
    if isinstance(value, str) and "Path" in annotation and "str" not in annotation:
        return Path(value)
    return value


def _resolved(path: Any, name: str) -> Any:
    parts = path.split(".") if isinstance(path, str) else []
    for i in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:i])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        try:
            return functools.reduce(getattr, parts[i:], found)
        except AttributeError:
            break
    where = " (the script that wrote it)" if parts[:1] == ["__main__"] else ""
    raise BadArgument(f"{name}: the checkpoint names {path!r}{where}, which is not to be found; {_advice(name)}")


def _advice(name: str) -> str:
    argument = name.split(".")[0].split("[")[0]
    return "import its module first" if argument == "class_path" else f"pass {argument}=... where you load the checkpoint"


def _same_class(came: str | None, expected: str | None) -> bool:
    """A script's classes are in ``__main__`` when it runs, and in its module when it is imported."""
    if came is None or expected is None or "__main__" not in (came.split(".")[0], expected.split(".")[0]):
        return came == expected
    return came.split(".")[-1] == expected.split(".")[-1]
