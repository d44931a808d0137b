"""Errors that say which argument has a wrong type, at no cost to calls that work."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

from torch import Tensor

from lightning_nerf.checks import BadType

P = ParamSpec("P")
R = TypeVar("R")

_NUMBERS = {int: numbers.Integral, float: numbers.Real, bool: numbers.Real}
_WORDS = {Tensor: "a tensor", int: "an integer", float: "a number", bool: "a bool", type(None): "None"}


def typed_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Where a call fails on the type of an argument, raise a TypeError that names it, what came and what was expected.

    The annotations are read only then: an argument of another type that works is accepted.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            complaint = _complaint(function, args, kwargs)
            if complaint is None:
                raise
            raise BadType(complaint) from error

    return checked


def _complaint(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    try:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # one too many, or too few: Python says which
        return None
    hints = typing.get_type_hints(function)
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            return f"{name}: expected {_words(hints[name])}, got {type(value).__name__}"
    return None


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if origin is collections.abc.Sequence:
        of = typing.get_args(hint)[0]
        return isinstance(value, (list, tuple)) and all(_fits(each, of) for each in value)
    if hint is Any or origin is Literal:  # of the right type, wrong values are told elsewhere
        return True
    return isinstance(value, _NUMBERS.get(hint, origin or hint))


def _words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Sequence:
        return f"a sequence (each {_words(typing.get_args(hint)[0])})"
    return _WORDS.get(hint) or str((origin or hint).__name__)
