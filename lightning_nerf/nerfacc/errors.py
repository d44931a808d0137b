"""The errors of this namespace: those of the whole package, which ``except AssertionError`` catches too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.checks import BadArgument, BadType

P = ParamSpec("P")
R = TypeVar("R")


class NerfAccArgument(BadArgument, AssertionError):  # noqa: N818 (named like those in checks.py)
    """A wrong argument: a ValueError, and an AssertionError because NerfAcc asserts.

    >>> try:
    ...     nerfacc.pack_info(torch.zeros(2, 2, dtype=torch.int64))
    ... except AssertionError as error:
    ...     print(error)
    ray_indices: expected shape [N], got [2, 2]
    """


class NerfAccType(NerfAccArgument, BadType):
    """An argument of a wrong type: a :class:`NerfAccArgument` that is a TypeError too."""


class NerfAccState(RuntimeError, AssertionError):  # noqa: N818
    """A call at a time when the object cannot answer it, such as a loss before any sampling."""


def argument_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Make a public function raise :class:`NerfAccArgument` for a wrong argument."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            where = error.__traceback__
            named = _named(function, error, args, kwargs)
            error.__traceback__ = where
            if type(named) is BadType:
                raise NerfAccType(*named.args).with_traceback(where) from named.__cause__
            if type(named) is BadArgument:
                raise NerfAccArgument(*named.args).with_traceback(where) from named.__cause__
            raise

    return checked


def _named(
    function: Callable[..., object], error: Exception, args: tuple[object, ...], kwargs: dict[str, object]
) -> Exception:
    """The error itself, or one that names the argument of a wrong type which led to it."""

    @typed_errors
    @functools.wraps(function)
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    try:
        fail(*args, **kwargs)
    except Exception as named:
        return named
