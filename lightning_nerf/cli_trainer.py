"""Settings of the Trainer that Lightning takes without a check, or refuses with a traceback of its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback, ProgressBar

from lightning_nerf.callbacks.progress import NeRFProgressBar
from lightning_nerf.checks import BadArgument, check_integer
from lightning_nerf.cli_errors import is_refusal

_LEAST = {  # of settings that Lightning does not check: the least value of each
    "max_steps": -1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
}
_NEVER_NONE = ("max_steps", "accumulate_grad_batches")  # a recipe's null passes as "not given"


def check_settings(config: Any) -> None:
    """Check the settings under ``trainer`` that Lightning takes as they come."""
    for name, least in _LEAST.items():
        value = config.get(name)
        if value is not None or name in _NEVER_NONE:
            check_integer(f"trainer.{name}", value, least)
    if config.get("overfit_batches", 0) is None:
        raise BadArgument("trainer.overfit_batches: expected a number of batches, 0 for all, got None")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse two callbacks whose states a checkpoint could not tell apart, such as one that a recipe lists twice."""
    keys = [callback.state_key for callback in callbacks if type(callback).state_dict is not Callback.state_dict]
    for key in keys:
        if keys.count(key) > 1:
            raise BadArgument(f"trainer.callbacks: expected one {key:.200}, got {keys.count(key)}")


def with_bar(callbacks: Any, has_bar: bool) -> list[Callback]:
    """The callbacks with one progress bar: the last of those that are given, else ours; or with none."""
    given = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
    bars = [callback for callback in given if isinstance(callback, ProgressBar)] or [NeRFProgressBar()]
    return [callback for callback in given if not isinstance(callback, ProgressBar)] + (bars[-1:] if has_bar else [])


def shows_bar(config: Any) -> bool:
    """Whether the settings under ``trainer`` leave a progress bar on."""
    return config.get("enable_progress_bar") is not False and not config.get("barebones")


@contextmanager
def refused_settings() -> Iterator[None]:
    """A BadArgument where Lightning's constructor of the Trainer fails on a value; what others raise stays as it is."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if is_refusal(error) or not frames[-1].startswith("lightning."):
            raise
        reason = " ".join(str(error).split())
        raise BadArgument(
            f"trainer: Lightning cannot use these settings ({type(error).__name__}: {reason:.300})"
        ) from error
