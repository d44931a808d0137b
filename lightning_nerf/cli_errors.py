"""What the command line says of a user's mistakes: one line that names the key, without a traceback."""

from __future__ import annotations

import argparse
import errno
import functools
import importlib
import inspect
import itertools
import operator
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

import docstring_parser
from jsonargparse._typehints import ActionTypeHint
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from lightning_nerf.checks import BadArgument
from lightning_nerf.cli_words import nearest
from lightning_nerf.recipes import overlay_note

# What jsonargparse says beside the reason: the other members of a union, the whole value, what would have been accepted.
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Not a valid subclass of|"
    r"Subclass types expect|(a class path|a dict) ?(\(|with|without)|Expected a path but"
)
_KEY = re.compile(r'Parser key "(.+)":')
_CLASS = re.compile(r"Problem with given class_path '(.+)':")
_OPTION = re.compile(r"Option '(.+)' is not accepted")
_ATTRIBUTE = re.compile(r"module '(.+)' has no attribute '(.+)'")
_MODULE = re.compile(r"No module named '([\w.]+)'")
_SHORT = re.compile(r"Expected a dot import path string: (\w+)")
_UNKNOWN = re.compile(r"(?:unrecognized arguments: |does not accept option ')(?:--)?([\w.]+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_CHECKS = ("lightning_nerf.checks", "lightning_nerf.argument_types")
_LIGHTNING_CHECKS = (  # what reads the Trainer's flags and checkpoints
    "lightning.fabric.accelerators.",
    "lightning.fabric.plugins.io.",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.connectors.accelerator_connector",
)
_LONGEST = 300  # of a reason: some repeat the whole value, which may be a whole model
_WANDB_REMEDY = "without an account or a network: WANDB_MODE=offline, or --trainer.logger.init_args.offline=true"
_LOGGERS = ("lightning.pytorch.loggers.", "lightning.fabric.loggers.")
# A full disk, a read-only folder, a name that is too long and the like: wherever it is noticed.
_OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG,
)  # fmt: skip
_CLASSES = ("", ".callbacks", ".modules", ".fields", ".estimators", ".renderers", ".data")  # where short names are from


class BriefParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line for each reason in place of its usage and its arguments.

    Options have to be written out: an abbreviation that is one by chance would change another setting in silence.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"prog": "lightning-nerf", "allow_abbrev": False, **options})

    def add_class_arguments(self, theclass: Any, *args: Any, **options: Any) -> Any:
        """Add them, with the help that a docstring gives for several at once (``near, far: bounds of the rays``).

        What takes an int or a float is read as an int first: the Trainer's limits count batches by 1 and take all by 1.0.
        """
        added = super().add_class_arguments(theclass, *args, **options)
        helps = _shared_helps(theclass)
        for action in self._actions:
            if not action.help and action.dest in added:
                action.help = helps.get(action.dest.rpartition(".")[2], action.help)
            if action.dest in added and isinstance(action, ActionTypeHint):
                action._typehint = _int_first(action._typehint)
        return added

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parse, and know afterwards what was typed."""
        self.typed = sys.argv[1:] if args is None else args
        try:
            return super().parse_args(_with_null(args), *others, **options)
        except UnicodeDecodeError as error:
            self.error(f"a file that the configuration names is no UTF-8 text ({error.reason}, byte {error.start})", error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2, or raise where the parser was told to."""
        if not self.exit_on_error:
            super().error(message, ex)
        typed = getattr(self, "typed", ())
        text = brief(message, _keys(self, typed))
        refused = re.search(r"has no argument '(\w+)'$", text)
        note = overlay_note(typed, refused[1]) if refused else ""
        self.exit(2, f"lightning-nerf: {text}{note}\n")
        raise AssertionError  # not reached; jsonargparse's exit does not say that it never returns


def _with_null(args: Any) -> Any:
    """A part's argument null as a word again: jsonargparse hands it on to the part's parser as Python's None."""
    is_none = isinstance(args, list) and len(args) == 1 and args[0].startswith("--") and args[0].endswith("=None")
    return [f"{args[0].removesuffix('None')}null"] if is_none else args


@contextmanager
def refusals_in_a_line(command: str = "lightning-nerf") -> Iterator[None]:
    """End the program with one line and exit code 1 where a check refuses what a user gave; keep all other tracebacks.

    A check raises a :class:`~lightning_nerf.checks.BadArgument`, or stands where Lightning reads the Trainer's flags and
    checkpoints. Any other exception may be a bug, as may a BadArgument of an op: the package chose the op's arguments.
    """
    try:
        yield
    except Exception as error:
        refusal = next((e for e in _causes(error) if is_refusal(e)), None)
        if refusal is None:
            if (missing := _missing_logger(error)) is not None:
                sys.exit(f"{command}: {missing}")
            raise
        text = f"{refusal.strerror}: {refusal.filename}" if isinstance(refusal, OSError) and refusal.filename else refusal
        if _is_of_wandb(refusal):
            text = f"{' '.join(str(text).split())} ({_WANDB_REMEDY})"
        text = " ".join(str(text).split()) if isinstance(refusal, ModuleNotFoundError) else text
        sys.exit(f"{command}: {text}")


def brief(message: str, keys: Iterable[str] = ()) -> str:
    """The reasons in a message of jsonargparse's, each in a line with its key and, if there is one, the nearest valid name.

    Args:
        message: what it would print.
        keys: those that the command line has.
    """
    path: list[tuple[int, str]] = []  # indentation and key of what the next lines are about
    reasons: list[str] = []
    class_path = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip())
        if found := _KEY.match(text):
            path = [(i, key) for i, key in path if i < indent] + [(indent, found[1])]
            text = text[found.end() :].strip()
        if found := _CLASS.match(text):
            class_path = found[1]
        elif text and not _NOISE.match(text):
            where = ".".join(key for _, key in path)
            with suppress(Exception):  # a name that a user made up leads anywhere; the reason itself says enough
                text = _explained(text, class_path, keys)
            text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
            reasons.append(f"{where}: {text}" if where else text)
    if not reasons and path:
        reasons.append(f"{'.'.join(key for _, key in path)}: expected a class, as class_path and init_args")
    return "\n  ".join(dict.fromkeys(reasons)) or message


def _explained(reason: str, class_path: str, keys: Iterable[str]) -> str:
    if found := _OPTION.match(reason):
        return f"{class_path} has no argument {found[1]!r}{nearest(found[1].split('.')[0], _arguments(class_path))}"
    if found := _ATTRIBUTE.search(reason):
        return f"class_path {class_path!r}: {found[0]}{nearest(found[2], _names(found[1]))}"
    if found := _MODULE.search(reason):
        return f"class_path {class_path!r}: {found[0]}{nearest(found[1], ('lightning', 'lightning_nerf', 'torch'))}"
    if found := _SHORT.match(reason):
        names = [name for package in _CLASSES for name in _names(f"lightning_nerf{package}")]
        return f"no class {found[1]!r}{nearest(found[1], names)}"
    if found := _UNKNOWN.search(reason):
        return unknown(found[1], keys)
    if found := _REQUIRED.search(reason):
        return f"required, but given by no configuration and no argument: {found[1]}; -c blender/instant_ngp names a recipe"
    return reason


def _int_first(hint: Any) -> Any:
    """The same type hint; a union of int, float and others with int in front.

    ``typing`` takes two unions for equal that differ in order alone, and keeps the one that any package made first. With
    float in front, jsonargparse makes 1.0 of the whole number 1. Unions of ``|`` are not kept.
    """
    members = get_args(hint)
    if get_origin(hint) not in (Union, UnionType) or int not in members or float not in members:
        return hint
    return functools.reduce(operator.or_, sorted(members, key=lambda member: member is not int))


def _shared_helps(kind: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say of arguments that they describe together."""
    found: dict[str, str] = {}
    for base in reversed(getattr(kind, "__mro__", ())):
        for parameter in docstring_parser.parse(base.__doc__ or "").params:
            names = parameter.arg_name.split(", ")
            if len(names) > 1:
                found.update(dict.fromkeys(names, parameter.description or ""))
    return found


def unknown(name: str, keys: Iterable[str]) -> str:
    """That there is no such key, and the nearest of those that there are."""
    keys = list(keys)
    return f"no key {name!r}{nearest(name, keys) or nearest(name.split('.')[0], keys)}"


def _arguments(class_path: str) -> list[str]:
    """Of the constructor, and of those that it may hand others on to."""
    module, _, name = class_path.rpartition(".")
    kinds = getattr(getattr(importlib.import_module(module), name, None), "__mro__", ())
    parameters = [p for kind in kinds[:-1] for p in list(inspect.signature(kind.__init__).parameters.values())[1:]]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _names(module: str) -> list[str]:
    loaded = importlib.import_module(module)
    return [*dir(loaded), *(found.name for found in pkgutil.iter_modules(getattr(loaded, "__path__", ())))]


def _keys(parser: argparse.ArgumentParser, typed: Iterable[str]) -> list[str]:
    """All keys of a parser and of the subcommand that was typed."""
    found: list[str] = []
    for action in parser._actions:
        found.append(action.dest)
        if isinstance(action, argparse._SubParsersAction):
            command = next((word for word in typed if word in action.choices), None)
            found += _keys(action.choices[command], ()) if command else []
    return found


def _causes(error: BaseException | None) -> Iterator[Any]:
    """The error and what it was raised from: jsonargparse wraps those of constructors."""
    while error is not None:
        yield error
        error = error.__cause__


def _missing_logger(error: Exception) -> str | None:
    """Which logger of a list lacks its package, and how to get that; None: this is another error.

    Where a value may be one logger or a list of them, jsonargparse keeps a constructor's error only as text.
    """
    if not isinstance(error, ValueError):
        return None
    lines = [line.strip() for line in str(error).splitlines()]
    for i, line in enumerate(lines):
        found = _CLASS.match(line.removeprefix("- "))
        if found and found[1].startswith(_LOGGERS):
            reason = " ".join(itertools.takewhile(lambda text: not text.startswith("- "), lines[i + 1 :]))
            if "pip install" in reason:
                return f"trainer.logger: {found[1].rpartition('.')[2]}: {reason}"
    return None


def _is_of_wandb(error: BaseException) -> bool:
    """Whether W&B itself refuses, for want of an account, a network or a project."""
    return any(kind.__module__.startswith("wandb.") and kind.__name__ == "Error" for kind in type(error).__mro__)


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a user's mistake that its message explains."""
    if _is_of_wandb(error):
        return True
    if isinstance(error, MisconfigurationException) or (isinstance(error, OSError) and error.errno in _OF_THE_DISK):
        return True
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    asked = next((m for m in reversed(modules) if m not in _CHECKS), "")
    if isinstance(error, BadArgument):
        return not asked.startswith("lightning_nerf.ops.")  # an op's arguments are this package's own: a bug
    if isinstance(error, ModuleNotFoundError):  # an optional package, such as wandb
        return asked.startswith(_LOGGERS)
    return isinstance(error, (ValueError, TypeError, OSError)) and asked.startswith(_LIGHTNING_CHECKS)
