"""The watch sees what a file must not do, also where the file is refused in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.watch import nothing_done_outside

DEEDS: dict[str, Callable[[Path], object]] = {
    "removes a file": lambda there: (there / "thesis.tex").unlink(),
    "writes one": lambda there: (there / "x").write_text("x"),
    "makes a folder": lambda there: (there / "y").mkdir(),
    "moves one away": lambda there: (there / "thesis.tex").rename(there.parent / "inside" / "thesis.tex"),
    "moves one there": lambda there: (there.parent / "inside" / "mine").rename(there / "thesis.tex"),
    "runs a program": lambda there: subprocess.call([sys.executable, "-V"], stdout=subprocess.DEVNULL),
}


@pytest.mark.parametrize("refuses", [False, True], ids=["and returns", "and raises"])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_done_outside_is_seen(tmp_path: Path, deed: str, refuses: bool) -> None:
    for folder in ("inside", "outside"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside/thesis.tex").write_text("years")
    (tmp_path / "inside/mine").write_text("mine")

    def read() -> None:
        with nothing_done_outside(tmp_path / "inside"):
            DEEDS[deed](tmp_path / "outside")
            if refuses:
                raise ValueError("x")

    with pytest.raises(AssertionError, match="done outside"):
        read()


def test_what_is_done_inside_and_what_is_read_are_free(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "thesis.tex").write_text("years")
    with nothing_done_outside(tmp_path / "inside"):
        (tmp_path / "inside/x").write_text((tmp_path / "thesis.tex").read_text())
        os.rename(tmp_path / "inside/x", tmp_path / "inside/y")
        (tmp_path / "inside/y").unlink()
