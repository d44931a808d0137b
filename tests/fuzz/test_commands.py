"""Mutated checkpoints, recipes and camera files, given to the command itself: it takes one or refuses it, and does no more.

``python -m tests.fuzz.test_commands N [SEED]`` tries N of them and prints what is wrong.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fuzz.commands import KINDS, Place

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits on processes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("commands"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_the_command_takes_or_refuses_a_mutated_file_and_does_no_more(place: Place, seed: int) -> None:
    answer, faults = place.attempt(seed)
    assert not faults, f"{faults}\n{answer.words}\n{answer.text}"


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        there = Place(Path(folder) / "place")
        for i in range(first, first + count):
            answer, found = there.attempt(i)
            kind, command = KINDS[i % len(KINDS)], answer.words[0]
            print(f"{i} {kind}: {command} {answer.code} {answer.seconds:.1f} s", *found, flush=True)
            if found:
                print(answer.text, flush=True)
