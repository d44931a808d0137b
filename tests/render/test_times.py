"""Films along the time: frozen time, frozen camera, both moving, and what cannot be rendered at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_nerf.checks import BadArgument
from lightning_nerf.render.main import choose_cameras, main, parse
from lightning_nerf.render.scene import load
from lightning_nerf.render.times import parse_times, warn_outside
from tests.render.scene import FIRST, LAST, write_checkpoint, write_moving_recipe, write_recipe
from tests.render.test_render import refused

NPY = ["--channels", "rgba", "--out", "film.npy", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> list[str]:
    """The arguments that name recipe and checkpoint of a ball whose red tells the time, from 2 to 5."""
    folder = tmp_path_factory.mktemp("moving")
    recipe = write_moving_recipe(folder, scene_cache)
    return ["-c", str(recipe), "--ckpt", str(write_checkpoint(folder / "moving.ckpt", recipe))]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def film(arguments: list[str]) -> tuple[list[float], list[float]]:
    """Of each frame, the time that its red tells, and how far down the ball is: the mean row of its pixels."""
    (path,) = main([*arguments, *NPY])
    frames = np.load(path)
    frames = frames[None] if frames.ndim == 3 else frames
    opaque = frames[..., 3] > 0.99
    times = [FIRST + (LAST - FIRST) * float(frame[seen, 0].mean()) for frame, seen in zip(frames, opaque, strict=True)]
    return times, [float(np.nonzero(seen)[0].mean()) for seen in opaque]


def write_cameras(count: int, times: list[float] | None = None, name: str = "cameras.json") -> None:
    pose = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, -4.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    frames: list[dict[str, Any]] = [{"transform_matrix": pose} for _ in range(count)]
    for frame, time in zip(frames, times or [], strict=False):
        frame["time"] = time
    Path(name).write_text(json.dumps({"fl_x": 24.0, "w": 24, "h": 24, "frames": frames}))


FILMS = {
    "a moving camera at a frozen time": (["--path", "orbit", "--n_frames", "4", "--times", "3.5"], [3.5] * 4),
    "a view that stands still over time": (["--path", "test:1", "--n_frames", "4", "--times", "2:5"], [2, 3, 4, 5]),
    "a view by its name": (["--path", "test:r_1", "--n_frames", "2", "--times", "2:5"], [2, 5]),
    "backwards": (["--path", "train:0", "--n_frames", "3", "--times", "5:2"], [5, 3.5, 2]),
    "there and back, before the first again": (
        ["--path", "val:0", "--n_frames", "6", "--times", "2:5:2"], [2, 3, 4, 5, 4, 3],
    ),
    "both moving": (["--path", "orbit", "--n_frames", "3", "--times", "3:4"], [3, 3.5, 4]),
    "both moving in a spiral": (["--path", "spiral", "--n_frames", "3", "--times", "3:4"], [3, 3.5, 4]),
    "as many frames as times": (["--path", "orbit", "--times", "2", "4.5", "3"], [2, 4.5, 3]),
    "a still view has as many frames as times": (["--path", "test:0", "--times", "2", "4.5", "3"], [2, 4.5, 3]),
    "an orbit by itself goes through the training's times once": (["--path", "orbit", "--n_frames", "3"], [2, 3.5, 5]),
    "a spiral by itself, too": (["--path", "spiral", "--n_frames", "3"], [2, 3.5, 5]),
    "held-out views at their own times": ([], [2, 3.5, 5]),
    "one of them": (["--path", "test:1"], [3.5]),
    "held-out views at another time": (["--times", "4"], [4, 4, 4]),
    "held-out views, each at its own": (["--times", "4", "3", "2"], [4, 3, 2]),
    "some held-out views": (["--n_frames", "2", "--times", "4:5"], [4, 5]),
    "one frame of a way is its beginning": (["--path", "orbit", "--n_frames", "1", "--times", "4:5"], [4]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILMS)
def test_each_frame_shows_the_scene_at_its_time(case: str, moving: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = FILMS[case]
    times, rows = film([*moving, *arguments])
    assert times == pytest.approx(expected, abs=1e-3)
    captured = capsys.readouterr()
    of_two = f"times: {expected[0]:.4g} in the first frame, {expected[-1]:.4g} in the last\n"
    assert (f"time: {expected[0]:.4g}\n" if len(set(expected)) == 1 else of_two) in captured.out
    assert "outside of the training views' times" not in captured.err
    if "still" in case:
        ascending = [row for _, row in sorted(zip(times, rows, strict=True))]
        assert ascending == sorted(rows, reverse=True)
        assert len(set(rows)) == len(rows)


def test_a_still_camera_does_not_move(moving: list[str]) -> None:
    options, rest = parse([*moving, "--path", "test:1", "--times", "2:5"])
    assert options.out == Path("renders/test_1")
    scene = load(options.ckpt, options.config, rest)
    cameras, names = choose_cameras(options, scene)
    assert cameras.n_views == len(set(names)) == 120
    assert torch.equal(cameras.c2w, scene.data.scene("test").cameras.c2w[1:2].expand(120, 3, 4))


FILES = {
    "the times of its frames": (2, [2.5, 4.0], [], [2.5, 4.0]),
    "other times": (2, [2.5, 4.0], ["--times", "3"], [3, 3]),
    "times where it has none": (2, None, ["--times", "3", "4"], [3, 4]),
    "a way where it has none": (3, None, ["--times", "3:4"], [3, 3.5, 4]),
    "one camera stands still": (1, [2.5], ["--times", "2:5", "--n_frames", "4"], [2, 3, 4, 5]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_camera_file_says_the_times_of_its_views_or_the_arguments_do(case: str, moving: list[str]) -> None:
    count, own, arguments, expected = FILES[case]
    write_cameras(count, own)
    times, rows = film([*moving, "--path", "cameras.json", *arguments])
    assert times == pytest.approx(expected, abs=1e-3)
    heights = [11.5 - 24 / 4 * ((time - FIRST) / (LAST - FIRST) - 0.5) for time in times]  # one unit is 6 pixels at 4
    assert rows == pytest.approx(heights, abs=0.5)


def test_times_that_are_typed_take_the_place_of_bad_ones_in_a_camera_file(
    moving: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras(2, [2.5])  # of the first frame alone
    assert "got none in frame 1" in refused([*moving, "--path", "cameras.json"], capsys)
    times, _ = film([*moving, "--path", "cameras.json", "--times", "3"])
    assert times == pytest.approx([3, 3], abs=1e-3)


def test_a_key_like_time_is_named_where_a_camera_file_has_no_times(
    moving: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras(2, [2.5, 3.0])
    Path("cameras.json").write_text(Path("cameras.json").read_text().replace('"time"', '"tiem"'))
    message = refused([*moving, "--path", "cameras.json"], capsys)
    assert "cameras.json have none; frame 0 has 'tiem'; those of the training views are from 2 to 5" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--times", "noon"], ["--times: expected a time (0.5)", "got 'noon'"]),
        (["--times", "nan"], ["--times", "got 'nan'"]),
        (["--times", "1e60"], ["--times", "got '1e60'"]),
        (["--times", "2:"], ["--times", "two ends (0:1)", "got '2:'"]),
        (["--times", "2:3:4:5"], ["--times", "got '2:3:4:5'"]),
        (["--times", "2:5:0.1"], ["--times: expected 2:5:2, there and back, got 2:5:0.1", "--n_frames"]),
        (["--times", "2:5", "3"], ["--times: expected 2:5 alone, got 2 words"]),
        (["--times"], ["--times: expected at least one argument"]),
        (["--times", "2", "3"], ["--times: expected 3 times, one for each frame, got 2"]),
        (["--path", "orbit", "--n_frames", "4", "--times", "2", "3"], ["--times: expected 4 times", "got 2"]),
        (["--path", "test:0", "--n_frames", "4", "--times", "2", "3"], ["--times: expected 4 times", "got 2"]),
        (["--path", "test:3"], ["--path: expected test:0 to test:2, or a view's name, as in test:r_0, got 'test:3'"]),
        (["--path", "test:-1"], ["--path: expected test:0 to test:2", "got 'test:-1'"]),
        (["--path", "test:"], ["--path: expected test, val, train, orbit, spiral, one view (test:3)", "got 'test:'"]),
        (["--path", "test:0", "--n_frames", "2", "--times", "3"], ["--n_frames: expected at most 1"]),
        (
            ["--path", "timeless.json"],
            [
                "--times: expected a time, as in --times 0.5: MovingBall wants times",
                "timeless.json have none",
                "from 2 to 5",
            ],
        ),
    ],
)
def test_bad_times_and_views_are_named(
    arguments: list[str], said: list[str], moving: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras(2, None, "timeless.json")
    message = refused([*moving, *arguments], capsys)
    for words in said:
        assert words in message
    assert not Path("renders").exists()


def test_times_of_a_static_model_are_refused(tmp_path: Path, scene_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, scene_cache)
    ball = ["-c", str(recipe), "--ckpt", str(write_checkpoint(tmp_path / "ball.ckpt", recipe))]
    message = refused([*ball, "--times", "0.5"], capsys)
    assert "--times: expected a model of a dynamic scene; Ball does not want times" in message
    write_cameras(2, [0.0, 1.0])
    main([*ball, "--path", "cameras.json"])  # a file's times do no harm
    assert "times" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "worst", "count"),
    [
        (["--path", "orbit", "--n_frames", "4", "--times", "1:7"], "7", "2 of 4 frames of --path orbit"),
        (["--path", "cameras.json"], "0.5", "1 of 2 frames of --path cameras.json"),
    ],
)
def test_times_outside_of_the_training_are_rendered_and_said_once(
    arguments: list[str], worst: str, count: str, moving: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras(2, [0.5, 3.0])
    main([*moving, *arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if "outside of" in line]
    assert len(said) == 1
    assert f"the time {worst} lies outside of the training views' times, 2 to 5" in said[0]
    assert count in said[0]


@pytest.mark.parametrize("arguments", [[], ["--path", "val"], ["--path", "test:2"], ["--path", "orbit", "--n_frames", "3"]])
def test_views_at_times_that_the_checkpoint_was_not_trained_on_are_said(
    arguments: list[str], moving: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(moving[-1], weights_only=True)
    content["state_dict"]["field.time_range"] = torch.tensor([2.0, 4.0])
    torch.save(content, "shorter.ckpt")
    main([*moving[:-1], "shorter.ckpt", *arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if "outside of" in line]
    assert len(said) == 1
    assert "the time 5 lies outside of the training views' times, 2 to 4" in said[0]
    assert "whose times go from " in said[0]
    assert said[0].endswith(" to 5)")


def test_the_ends_of_the_training_may_be_typed_with_few_digits(capsys: pytest.CaptureFixture[str]) -> None:
    warn_outside(parse_times(["0.333:0.9932"]).of_frames(7), (1 / 3, 0.99318), "it")
    warn_outside(torch.tensor([1.0, 7.0]), None, "it")
    assert capsys.readouterr().err == ""


THERE_AND_BACK = {
    1: [0],
    2: [0, 1],
    3: [0, 1, 1],
    4: [0, 0.5, 1, 0.5],
    5: [0, 0.5, 1, 1, 0.5],
    7: [0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3],
}


@pytest.mark.parametrize("n", THERE_AND_BACK)
def test_a_way_there_and_back_reaches_its_far_end(n: int) -> None:
    assert parse_times(["0:1:0"]).of_frames(n).tolist() == pytest.approx(THERE_AND_BACK[n])


@pytest.mark.parametrize("word", ["-1:1", "-.5:1", "-1:1:-1", "-1e-3"])
def test_a_time_that_looks_like_an_option_is_said(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["last.ckpt", "--times", word])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == f"lightning-nerf render: --times: {word} begins as an option does; write --times={word}\n"
    assert parse(["last.ckpt", f"--times={word}"])[0].times == [word]
    assert parse(["last.ckpt", "--times", "-1", "-0.5"])[0].times == ["-1", "-0.5"]


def test_a_way_may_be_of_one_moment_or_of_negative_times() -> None:
    assert parse_times(["-1:1"]).of_frames(3).tolist() == [-1, 0, 1]
    assert parse_times(["2:2:2"]).of_frames(3).tolist() == [2, 2, 2]
    assert parse_times(["-0.5"]).of_frames(2).tolist() == [-0.5, -0.5]
    with pytest.raises(BadArgument, match="--times: expected 3 times, one for each frame, got 2"):
        parse_times(["0", "1"]).of_frames(3)
