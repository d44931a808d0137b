"""``COMMAND --help``: without torch and Lightning where the text has been made once, and never out of date."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_nerf import cli_help
from lightning_nerf.__main__ import main

ROOT = Path(__file__).parents[1]
LOADED = """
import atexit, sys
atexit.register(lambda: print({*sys.modules} & {'torch', 'lightning'}, file=sys.stderr))
from lightning_nerf.__main__ import main
main()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() leaves it alone then
    return tmp_path / "lightning-nerf" / "help"


def helped(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--help"], "--trainer.max_steps"),
        (["render", "-h"], "--depth_range"),
        (["bench", "ops", "--help"], "--output"),
    ],
)
def test_the_second_time_it_loads_neither_torch_nor_lightning(cache: Path, words: list[str], said: str) -> None:
    first, second = helped(*words), helped(*words)
    assert said in first.stdout
    assert first.stdout == second.stdout
    assert first.returncode == second.returncode == 0
    assert second.stderr == "set()\n"
    assert len(list(cache.iterdir())) == 1


def test_a_reader_that_leaves_early_does_not_have_it_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    path = cli_help.help_file("fit")
    path.parent.mkdir(parents=True)
    path.write_text("help")
    monkeypatch.setattr(sys, "stdout", Closed())
    made: list[int] = []
    with pytest.raises(BrokenPipeError):
        cli_help.show_help(["fit", "--help"], lambda: made.append(1))
    assert not made


def test_it_is_made_again_for_another_width_and_after_a_change(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def make() -> None:
        made.append(1)
        print(f"help {len(made)}")
        raise SystemExit(0)

    def shown() -> str:
        with pytest.raises(SystemExit) as ended:
            cli_help.show_help(["fit", "--help"], make)
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert [shown(), shown()] == ["help 1\n"] * 2
    monkeypatch.setenv("COLUMNS", "80")
    assert [shown(), shown()] == ["help 2\n"] * 2
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(cli_help, "_MADE_BY", ("torch",))  # as if versions had changed
    assert [shown(), shown()] == ["help 3\n"] * 2
    assert len(list(cache.iterdir())) == 1  # what is out of date is gone


def test_an_error_is_not_kept(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        print("half")
        raise SystemExit(2)

    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            cli_help.show_help(["bench", "nothing", "--help"], refuse)
        assert capsys.readouterr().out == "half\n"
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_does_no_harm(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.parent.write_text("no folder")
    cli_help.show_help(["fit", "--help"], lambda: print("it"))
    assert capsys.readouterr().out == "it\n"


@pytest.mark.parametrize("words", [["--help"], ["fit"], ["fit", "-c", "--help"], ["bench", "../x", "--help"], []])
def test_other_words_are_not_a_question_for_help(words: list[str]) -> None:
    assert not cli_help.asks_for_help(words)


def test_a_mistyped_command_is_refused_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "fti", "--help"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "did you mean 'fit'" in capsys.readouterr().err
