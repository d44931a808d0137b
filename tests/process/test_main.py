"""The command: its refusals, its output, and what Ctrl-C leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_nerf import __main__ as command_line
from lightning_nerf.process import main as command
from tests.process.fake import FakeSfm, write_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", "a.png", "b.png", "c.png")


def use(sfm: FakeSfm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Colmap", sfm.open)
    monkeypatch.setattr(command, "load", lambda: None)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code, or the one line that stands for code 1."""
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "process", *words])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/where", "out"], "PHOTOS_OR_VIDEO: no file or folder no/where"),
        (["note.txt", "out"], "PHOTOS_OR_VIDEO: expected a folder or a video"),
        (["photos", "out", "--fps=2"], "--fps, --n_frames: expected a video, got the folder photos"),
        (["walk.mp4", "out", "--fps=0"], "--fps: expected a number > 0, got 0.0"),
        (["walk.mp4", "out", "--n_frames=2"], "--n_frames: expected >= 3, got 2"),
        (["photos", "out", "--max_size=10"], "--max_size: expected >= 64, got 10"),
        (["photos", "out", "--threads=0"], "--threads: expected >= 1, got 0"),
        (["photos", "note.txt"], "OUT: expected a folder, got the file note.txt"),
        (["empty", "out"], "empty: expected at least 3 photos"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    for name in ("note.txt", "walk.mp4"):
        Path(name).write_text("")
    Path("empty").mkdir()
    use(FakeSfm(), monkeypatch)
    said = str(run(words, monkeypatch))
    assert said.startswith(f"lightning-nerf process: {message}")
    assert "\n" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos"], "the following arguments are required: OUT"),
        (["photos", "out", "more"], "expected two paths, PHOTOS_OR_VIDEO and OUT, got more beside them"),
        (["photos", "out", "--mapper=glomap"], "argument --mapper: invalid choice"),
        (["photos", "out", "--mather=auto"], "no key 'mather'; did you mean 'matcher'?"),
        (["walk.mp4", "out", "--fps=2", "--n_frames=9"], "argument --n_frames: not allowed with argument --fps"),
    ],
)
def test_a_wrong_word_is_one_line_and_code_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lightning-nerf process: {message}")
    assert said.count("\n") == 1


def test_it_ends_with_the_report_and_the_command_that_trains(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeSfm(), monkeypatch)
    out = tmp_path / "my scene"
    command.main([str(photos), str(out)])
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "registered 3 of 3 pictures (100 %)"
    assert said.out.splitlines()[-1] == f"next: lightning-nerf fit -c captures/unbounded_prop --data.root '{out}'"
    assert said.err == ""  # no progress: this is no terminal


def test_no_poses_at_all_is_code_1_behind_the_report(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeSfm([]), monkeypatch)
    assert "no poses were found" in str(run([str(photos), str(tmp_path / "out")], monkeypatch))
    assert "-> " in capsys.readouterr().out


def test_ctrl_c_says_what_is_kept_and_ends_with_code_130(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeSfm(stop=4), monkeypatch)
    assert run([str(photos), str(tmp_path / "out")], monkeypatch) == 130
    assert f"what is done is kept in {tmp_path / 'out'}; the same command goes on" in capsys.readouterr().err
