"""Keeps from the terminal what a user of the command line can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LINES = ("💡 Tip", "TPU available: False", "HPU available: False", "IPU available: False", "[rank: 0] Received SIGTERM")
_WARNINGS = (
    r".*does not have many workers",  # the loaders hand out step and view numbers: more workers only add processes
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.13
    r"LightningCLI's args parameter is intended",  # it gets what was typed, in another order
    r"No seed found",  # "Seed set to 0" follows, which says the same
    r"The dirpath has changed from",  # a resumed fit writes into a folder of its own, as the documentation says
)
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.signal_connector")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop advertisements, lines on absent hardware, and warnings about the insides of Lightning."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    loggers = [logger for logger in loggers if _is_wanted not in logger.filters]  # an outer `quiet` removes its own
    for logger in loggers:
        logger.addFilter(_is_wanted)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LINES)
