"""MP4 by whichever ffmpeg is at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_nerf.callbacks.films import find_ffmpeg
from lightning_nerf.callbacks.turntable import save_video
from lightning_nerf.render.main import main
from tests.render.ffmpeg import FAILS, FAKE, content, put_on_path
from tests.render.scene import write_checkpoint, write_recipe
from tests.render.test_render import refused

ORBIT = ["--path", "orbit", "--n_frames", "3", "--resolution", "33", "17", "--fps", "12"]


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("ball")
    recipe = write_recipe(folder, scene_cache)
    return ["-c", str(recipe), "--ckpt", str(write_checkpoint(folder / "ball.ckpt", recipe))]


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs; the current one is another, and empty."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "bin"


def test_an_ffmpeg_on_path_gets_every_frame(ball: list[str], bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(FAKE, bin_folder, monkeypatch)
    (path,) = main([*ball, *ORBIT, "--out", "o.mp4"])
    (folder,) = main([*ball, *ORBIT, "--out", "frames"])
    words, frames = content(path)
    assert words[words.index("-s") + 1] == "34x18"  # the codec wants even sides
    assert words[words.index("-r") + 1] == "12"
    assert words[words.index("-c:v") + 1] == "libx264"
    assert words[words.index("-pix_fmt", words.index("-i")) + 1] == "yuv420p"  # what players show
    film = np.frombuffer(frames, np.uint8).reshape(3, 18, 34, 3)
    import imageio.v3 as iio

    pictures = np.stack([iio.imread(picture) for picture in sorted(folder.iterdir())])
    assert np.array_equal(film[:, :17, :33], pictures)
    assert np.array_equal(film[:, 17, :33], pictures[:, 16])
    assert sorted(p.name for p in Path(".").iterdir()) == ["frames", "o.mp4"]


def test_a_turntable_is_an_mp4_where_ffmpeg_is_at_hand(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 6, 8, 3), dtype=np.uint8)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(bin_folder))
    assert save_video(Path("turn"), frames, fps=15) == Path("turn.gif")
    put_on_path(FAKE, bin_folder, monkeypatch)
    path = save_video(Path("turn"), frames, fps=15)
    assert path == Path("turn.mp4")
    words, sent = content(path)
    assert words[words.index("-r") + 1] == "15"
    assert sent == frames.tobytes()


def test_an_ffmpeg_that_fails_is_one_line_and_leaves_nothing(
    ball: list[str], bin_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_on_path(FAILS, bin_folder, monkeypatch)
    message = refused([*ball, *ORBIT, "--out", "o.mp4"], capsys)
    assert "o.mp4" in message
    assert "ffmpeg ended with code 8: Unknown encoder 'libx264'" in message
    assert list(Path(".").iterdir()) == []
    with pytest.raises(OSError, match=r"ended with code 8: Unknown encoder"):
        save_video(Path("turn"), np.zeros((2, 600, 800, 3), dtype=np.uint8), fps=15)
    assert list(Path(".").iterdir()) == []


def test_imageios_ffmpeg_is_taken_before_the_one_on_path(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(FAKE, bin_folder, monkeypatch)
    assert find_ffmpeg() == str(bin_folder / "ffmpeg")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(get_ffmpeg_exe=lambda: "bundled"))
    assert find_ffmpeg() == "bundled"


def test_without_any_ffmpeg_the_remedies_are_named(
    ball: list[str], bin_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(bin_folder))
    message = refused([*ball, *ORBIT, "--out", "o.mp4"], capsys)
    for remedy in ("pip install 'imageio[ffmpeg]'", "ffmpeg so that it is on PATH", ".gif"):
        assert remedy in message
    assert list(Path(".").iterdir()) == []
