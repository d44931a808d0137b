"""Objects made from plain data that says what their constructor was given, and may stand in a stranger's file."""

from __future__ import annotations

import enum
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_nerf.checks import BadArgument
from lightning_nerf.recorded import Plain, Recorded, described, full_name, importable_path, is_for_training

__all__ = ["Recorded", "build", "checked_packages", "described", "differences"]

T = TypeVar("T")

_OURS = ("lightning_nerf", "torch.optim", "torch.nn")  # imported for a checkpoint without being asked


def build(spec: Any, kind: type[T], /, *, allow: Sequence[str] = (), **instead: Any) -> T:
    """An object from what :func:`described` said, which may stand in a stranger's file.

    Only classes are ever called: subclasses of :class:`Recorded`, optimizers and schedulers, that are imported already, are
    this package's or torch's, or are of a package that the caller allows. No other module is imported, and functions are
    not taken from a file at all, but for a constructor's own default.

    Args:
        spec: what :func:`described` returned.
        kind: what the result has to be an instance of.
        allow: packages whose modules may be imported too, such as ``["nerf_plugin"]``.
        instead: objects to give the constructor in place of recorded arguments.

    Raises:
        BadArgument: the class, or something that its constructor was given, has no name, is not to be found, is something
            else than expected, or of a package that is not allowed; or the constructor refuses its arguments.
    """
    builder = _Builder(checked_packages(allow))
    if not isinstance(spec, dict):
        raise BadArgument(f"class_path: expected a description with class_path and init_args, got {_shown(spec)}")
    if "unnamed" in spec:
        raise BadArgument(
            f"class_path: the checkpoint has none, it is of {_words(spec['unnamed'])}; build that and load its state_dict"
        )
    target = builder.resolved(spec.get("class_path"), "class_path")
    if not (inspect.isclass(target) and issubclass(target, kind) and issubclass(target, Recorded)):
        raise BadArgument(f"class_path: expected a subclass of {full_name(kind)}, got {_shown(spec.get('class_path'))}")
    arguments = target.arguments_of_file(_arguments(spec, ""))
    return builder.called(target, {**arguments, **instead}, "", instead)


def checked_packages(allow: Sequence[str]) -> tuple[str, ...]:
    """The packages of ``allow`` or ``--allow``.

    Raises:
        BadArgument: something is no package's name.
    """
    packages = [allow] if isinstance(allow, str) else list(allow)
    for package in packages:
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise BadArgument(f"allow: expected names of packages, such as 'nerf_plugin', got {_shown(package)}")
    return tuple(packages)


def differences(came: object, expected: object, name: str) -> list[str]:
    """How a description differs from the expected one, in a line per argument; where something has no name, nothing."""
    if isinstance(came, dict) and isinstance(expected, dict):
        if "unnamed" in came or "unnamed" in expected:
            return []
        if not _same_class(came.get("class_path"), expected.get("class_path")):
            kinds = [_words(side["class_path"]) if "class_path" in side else _shown(side) for side in (came, expected)]
            return [f"{name}: came {kinds[0]}, expected {kinds[1]}"]
        came, expected = came.get("init_args", came), expected.get("init_args", expected)
        if not (isinstance(came, dict) and isinstance(expected, dict)):
            return [f"{name}: came {_shown(came)}, expected {_shown(expected)}"]
        keys = [k for k in expected if k != "class_path"] + [k for k in came if k not in expected]
        missing = object()
        pairs = [(k, came.get(k, missing), expected.get(k, missing)) for k in keys]
        # An argument that one of them lacks is newer, or older, than the other: nothing to compare.
        return [d for k, a, b in pairs if missing not in (a, b) for d in differences(a, b, f"{name}.{k}")]
    if isinstance(came, torch.Tensor) or isinstance(expected, torch.Tensor):  # no record holds one
        same = False
    else:
        same = came == expected or (came != came and expected != expected)
    return [] if same else [f"{name}: came {_shown(came)}, expected {_shown(expected)}"]


class _Builder:
    """Makes objects from a file's descriptions, with the classes that the user trusts."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        self.allow = allow

    def made(self, value: Any, name: str, default: Any = None) -> Any:
        """An argument: what its description says, with the constructor's default for it."""
        if isinstance(value, list):
            return [self.made(item, f"{name}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if "unnamed" in value:
            raise BadArgument(
                f"{name}: the checkpoint has no name for it, it was {_words(value['unnamed'])}; {_advice(name)}"
            )
        if "class_path" not in value:
            return {key: self.made(item, f"{name}.{key}") for key, item in value.items()}
        path = value["class_path"]
        if default is not None and value.keys() == {"class_path"} and path == importable_path(default):
            return default  # it may be a function
        target = self.resolved(path, name)
        if "init_args" not in value:
            return self.named(target, path, name)
        arguments = _arguments(value, name)
        if is_for_training(target):
            supplied = self.check_names(target, arguments, name)[0].name
            if supplied in arguments:
                raise BadArgument(f"{name}.{supplied}: expected none, since it is given later")
            return functools.partial(target, **{k: self.made(v, f"{name}.{k}") for k, v in arguments.items()})
        if not (inspect.isclass(target) and issubclass(target, Recorded)):
            raise BadArgument(f"{name}: expected a field, estimator, renderer, optimizer or the like, got {path!r}")
        return self.called(target, target.arguments_of_file(arguments), name)

    def named(self, target: Any, path: str, name: str) -> Any:
        """The class, dtype or enum member of a name without arguments; harmless if called."""
        if isinstance(target, (torch.dtype, enum.Enum)):
            return target
        if not inspect.isclass(target):
            raise BadArgument(f"{name}: the checkpoint names {path!r}; functions are never taken from one; {_advice(name)}")
        layer = issubclass(target, torch.nn.Module) and _is_in(target.__module__, ("torch.nn",))
        own = layer or issubclass(target, (Recorded, Optimizer, LRScheduler, enum.Enum))
        if not own and not _is_in(target.__module__, self.allow):
            raise BadArgument(f"{name}: the checkpoint names the class {path!r}, which it may not; {_advice(name)}")
        return target

    def called(self, target: type[T], init_args: Plain, name: str, instead: Container[str] = ()) -> T:
        """An instance; ``instead`` are the arguments that the caller gave as they are."""
        parameters = self.check_names(target, init_args, name)
        by_name = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
        values = {
            key: _as_written(value if key in instead else self._given(value, name, key, by_name), by_name.get(key))
            for key, value in init_args.items()
        }
        rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
        positional: list[Any] = []
        for p in parameters:
            if p.name in values and (p.kind is p.POSITIONAL_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and rest in values)):
                positional.append(values.pop(p.name))
        more = values.pop(rest, ())
        if not isinstance(more, (list, tuple)):
            raise BadArgument(f"{_inner(name, rest)}: expected a list, got {_shown(more)}")
        try:
            return target(*positional, *more, **values)
        except OSError:
            raise
        except Exception as error:  # of any kind: the file may have given it anything
            if isinstance(error, BadArgument) and "\n" not in str(error):
                raise BadArgument(
                    str(error)
                ) from error  # here, since the command line takes one from within an op for a bug
            reason = (str(error).splitlines() or [""])[0]
            raise BadArgument(
                f"{name or 'init_args'}: {full_name(target)} does not take the checkpoint's arguments "
                f"({type(error).__name__}: {reason:.200})"
            ) from error

    def _given(self, value: Any, name: str, key: str, by_name: dict[str, inspect.Parameter]) -> Any:
        default = by_name[key].default if key in by_name else None
        return self.made(value, _inner(name, key), None if default is inspect.Parameter.empty else default)

    def check_names(self, target: type, init_args: Plain, name: str) -> list[inspect.Parameter]:
        """The constructor's parameters, which ``init_args`` must all be among."""
        parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
        names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        unknown = [key for key in init_args if key not in names]
        if unknown and len(names) == len(parameters):
            raise BadArgument(
                f"{_inner(name, unknown[0])}: expected an argument of {full_name(target)}, which takes no such"
            )
        return parameters

    def resolved(self, path: Any, name: str) -> Any:
        """What a path leads to, if that is imported or may be."""
        parts = path.split(".") if isinstance(path, str) and len(path) <= 1000 else []
        if len(parts) > 1 and all(part.isidentifier() for part in parts):
            if _is_in(path, (*_OURS, *self.allow)):
                _import(parts[:-1])
            found, package = _imported(parts)
            if found is not None:
                return found
            if package and not _is_in(path, (*_OURS, *self.allow)):
                raise BadArgument(
                    f"{name}: the checkpoint names {path!r}, and {parts[0]!r} is imported for it only if you trust it and "
                    f"say --allow {parts[0]} (in Python allow=[{parts[0]!r}]); else {_advice(name)}"
                )
        where = " (the script that wrote it)" if parts[:1] == ["__main__"] else ""
        raise BadArgument(f"{name}: the checkpoint names {_shown(path)}{where}, which is not to be found; {_advice(name)}")


def _import(parts: list[str]) -> None:
    """Import the longest part of a dotted name that is a module."""
    for i in range(len(parts), 0, -1):
        module = ".".join(parts[:i])
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return


def _imported(parts: list[str]) -> tuple[Any, bool]:
    """What a dotted name is in the modules that are imported, or None; and whether importing more might find it.

    Nothing is run to find it: no ``__getattr__`` of a module, no descriptor. Modules within modules are not gone through:
    ``package.files.os`` is not the package's.
    """
    for i in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:i]))
        if module is None:
            continue
        found: Any = vars(module).get(parts[i])
        if found is None and _is_in(parts[0], _OURS[:1]):
            found = getattr(module, parts[i], None)  # names that are loaded when they are asked for
        for part in parts[i + 1 :]:
            members = found.__members__ if inspect.isclass(found) and issubclass(found, enum.Enum) else {}
            found = members.get(part) or (inspect.getattr_static(found, part, None) if inspect.isclass(found) else None)
        if isinstance(found, types.ModuleType):
            found = None
        return found, found is None and hasattr(module, "__path__") and parts[0] != "__main__"
    return None, parts[0] not in sys.modules and importlib.util.find_spec(parts[0]) is not None


def _is_in(path: str, packages: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


def _arguments(spec: Plain, name: str) -> Plain:
    arguments = spec.get("init_args", {})
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise BadArgument(f"{_inner(name, 'init_args')}: expected a dict of names and values, got {_shown(arguments)}")
    return arguments


def _shown(value: object) -> str:
    """A value in a message, cut short; of what may be large only the kind."""
    plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
    try:
        return f"{' '.join(repr(value).split()):.200}" if plain else f"an object of class {full_name(type(value))}"
    except ValueError:  # an integer of more digits than Python prints
        return "a number of very many digits"


def _words(value: object) -> str:
    """A text in a message, without quotes unless it would not be seen."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return f"{text:.200}" if text and text.isprintable() else _shown(value)


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _as_written(value: object, parameter: inspect.Parameter | None) -> Any:
    """Plain data knows no tuples and paths; the parameter's annotation or default tells."""
    annotation = "" if parameter is None else str(parameter.annotation)
    default = None if parameter is None else parameter.default
    if isinstance(value, list) and (isinstance(default, tuple) or annotation.lower().startswith("tuple")):
        return tuple(value)
    if isinstance(value, str) and "Path" in annotation and "str" not in annotation:
        return Path(value)
    return value


def _advice(name: str) -> str:
    argument = name.split(".")[0].split("[")[0]
    return "import its module first" if argument == "class_path" else f"pass {argument}=... where you load the checkpoint"


def _same_class(came: object, expected: object) -> bool:
    """A script's classes are in ``__main__`` when it runs, and in its module when it is imported."""
    if not (isinstance(came, str) and isinstance(expected, str)):
        return type(came) is type(expected) and came is expected
    if "__main__" not in (came.split(".")[0], expected.split(".")[0]):
        return came == expected
    return came.split(".")[-1] == expected.split(".")[-1]
