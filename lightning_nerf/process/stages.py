"""Which stages are done, and with what: a second run goes on where the first was stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from lightning_nerf.files import whole_file

ORDER = ("pictures", "features", "matches", "model")  # each depends on those before it


class Begun(NamedTuple):
    """What is known of a stage that begins."""

    is_done: bool
    is_new: bool  # what lies there was made of other pictures or with other options, or nothing does


class Stages:
    """Marks in a file. A stage that depends on other things than last time is undone, with all that follow it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks: dict[str, dict[str, object]] = {}
        try:
            marks = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a first run, or no file of ours
            return
        if isinstance(marks, dict) and all(isinstance(mark, dict) for mark in marks.values()):
            self._marks = {stage: marks[stage] for stage in ORDER if stage in marks}

    def begin(self, stage: str, depends: object) -> Begun:
        """Enter a stage.

        Args:
            stage: one of ``ORDER``; those before it are done.
            depends: what its result depends on beside them, as JSON takes it.
        """
        position = ORDER.index(stage)
        before = self._marks.get(ORDER[position - 1], {}).get("depends") if position else None
        digest = hashlib.sha256(json.dumps([before, depends], sort_keys=True).encode()).hexdigest()
        mark = self._marks.get(stage, {})
        if mark.get("depends") == digest:
            return Begun(mark.get("done") is True, is_new=False)
        for later in ORDER[position:]:
            self._marks.pop(later, None)
        self._marks[stage] = {"depends": digest, "done": False}
        self._write()
        return Begun(is_done=False, is_new=True)

    def finish(self, stage: str, result: object = None) -> None:
        """Mark a stage as done, with a result as JSON takes it."""
        self._marks[stage] |= {"done": True, "result": result}
        self._write()

    def result(self, stage: str) -> object:
        """What :meth:`finish` was given; None: the stage is not done."""
        return self._marks.get(stage, {}).get("result")

    def _write(self) -> None:
        with whole_file(self.path) as file:
            file.write(json.dumps(self._marks, indent=1).encode())
