"""One line that says what is going on."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO


class Progress:
    """The stage and its count, on one line that is written over; nothing where the stream is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._width = 0
        self._stage, self._total, self._unit = "", 0, ""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """A new stage, in which ``total`` are to be done (0: their number is unknown)."""
        self.end()
        self._stage, self._total, self._unit = stage, total, unit
        self.count(0)

    def count(self, n: int) -> None:
        """So many are done."""
        of = f"{min(n, self._total)} of {self._total}" if self._total else f"{n}"
        self._write(f"{self._stage}: {of} {self._unit}")

    def end(self) -> None:
        """Leave the line as it is; what is printed next begins below it."""
        if self._width:
            self._width = 0
            self._put("\n")

    def _write(self, text: str) -> None:
        if self._is_shown:
            self._put(f"\r{text:{self._width}}")
            self._width = max(self._width, len(text))

    def _put(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone
            self._stream.write(text)
            self._stream.flush()
