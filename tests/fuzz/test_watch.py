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


def test_another_process_reports_what_it_does_outside(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    log = tmp_path / "log"
    program = "import sys, os; from pathlib import Path; from tests.fuzz.watch import report_to; here = Path(sys.argv[1])\n"
    program += "report_to(here / 'log', here / 'inside')\n(here / 'inside/x').touch()\n(here / 'y').touch()\nos._exit(3)"
    root = str(Path(__file__).parents[2])
    code = subprocess.call([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    assert code == 3
    assert log.read_text() == f"open {tmp_path.resolve() / 'y'}\n"
