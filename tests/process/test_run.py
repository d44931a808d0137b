"""The command's stages: what a second run does again, and what the report says."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.options import Options
from lightning_nerf.process.progress import Progress
from lightning_nerf.process.report import Report, show
from lightning_nerf.process.run import process
from tests.process.fake import FakeSfm, write_photos

NAMES = ["a.png", "b.png", "c.png"]
PAIRS = ["a.png b.png", "a.png c.png", "b.png c.png"]
ALL = ["reset", *NAMES, *PAIRS, "incremental"]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(write_photos(tmp_path / "photos", *NAMES), tmp_path / "out")


def run(options: Options, sfm: FakeSfm) -> Report:
    return process(options, sfm.open, Progress(io.StringIO()))


@pytest.mark.parametrize("stop", range(len(ALL) - 1))
def test_a_second_run_does_only_what_the_first_has_not_done(options: Options, stop: int) -> None:
    first, second = FakeSfm(stop=stop), FakeSfm()
    with pytest.raises(KeyboardInterrupt):
        run(options, first)
    assert not (options.out / "transforms.json").exists()
    assert run(options, second).registered == 3
    assert first.calls + second.calls == ALL


def test_a_run_on_a_finished_result_computes_nothing_and_reports_the_same(options: Options) -> None:
    again = FakeSfm()
    assert run(options, FakeSfm()) == run(options, again)
    assert again.calls == []


def touch(options: Options) -> Options:
    os.utime(options.source / "b.png", (1, 1))
    return options


def add(options: Options) -> Options:
    write_photos(options.source, "a.png", "d.png")
    return options


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        (touch, ALL),
        (lambda o: o._replace(max_size=800), ALL),
        (lambda o: o._replace(single_camera=False), ALL),
        (lambda o: o._replace(matcher="sequential"), ["incremental"]),  # the same pairs, of three pictures
        (lambda o: o._replace(mapper="global"), ["global"]),
        (lambda o: o._replace(camera_model="RADIAL"), ["incremental"]),
        (lambda o: o._replace(threads=7), []),
    ],
)
def test_what_depends_on_a_change_is_done_again(
    options: Options, change: Callable[[Options], Options], calls: list[str]
) -> None:
    run(options, FakeSfm())
    sfm = FakeSfm()
    run(change(options), sfm)
    assert sfm.calls == calls


def test_pictures_that_are_gone_leave_the_result(options: Options) -> None:
    run(options, FakeSfm())
    add(options)
    (options.source / "b.png").unlink()
    assert run(options, FakeSfm()).pictures == 3
    assert sorted(path.name for path in (options.out / "images").iterdir()) == ["a.png", "c.png", "d.png"]


def test_the_largest_model_is_taken_and_the_report_says_why_the_others_have_no_pose(tmp_path: Path) -> None:
    names = [f"p{i}.png" for i in range(5)]
    others = ["x0.png", "x1.png", "plain.png", "alone.png", "unfit.png", "odd.png"]
    source = write_photos(tmp_path / "photos", *names, *others)
    (source / "broken.jpg").write_text("no picture")
    models = [others[:2], names, names[:2]]  # the last is a failed start, whose pictures all have a pose
    report = run(Options(source, tmp_path / "out"), FakeSfm(models))
    assert (report.registered, report.pictures, report.models, report.points) == (5, 12, [5, 2], 50)
    assert {name: why.split()[0] for name, why in report.failed.items()} == {
        "broken.jpg": "cannot", "x0.png": "in", "x1.png": "in", "plain.png": "fewer", "alone.png": "matches",
        "unfit.png": "matches", "odd.png": "cannot",
    }  # fmt: skip
    text = "\n".join(show(report))
    for said in ("5 of 12 pictures (42 %)", "2 models", "in another model: x0.png, x1.png", "--mapper global"):
        assert said in text
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["failed"] == report.failed
    assert written["mean_reprojection_error"] == 0.5
    frames = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == [f"images/{name}" for name in names]
    assert json.loads((tmp_path / "out" / "sparse" / "0" / "model.json").read_text()) == names


def test_a_good_result_comes_without_advice(options: Options) -> None:
    assert run(options, FakeSfm()).advice == []


def test_no_model_is_a_report_without_a_result(options: Options) -> None:
    report = run(options, FakeSfm([]))
    assert report.registered == 0
    assert not (options.out / "transforms.json").exists()
    assert (options.out / "report.json").exists()


@pytest.mark.parametrize("name", ["images", "sparse", "transforms.json"])
def test_what_another_program_made_is_not_written_over(options: Options, name: str) -> None:
    options.out.mkdir()
    (options.out / name).mkdir()
    with pytest.raises(BadArgument, match=f"OUT: expected a new folder or one of this command, got .*{name}"):
        run(options, FakeSfm())


def test_the_photos_folder_is_not_written_into(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "out" / "images", *NAMES)
    with pytest.raises(BadArgument, match="OUT: expected another folder"):
        run(Options(source, tmp_path / "out"), FakeSfm())
    assert sorted(path.name for path in source.iterdir()) == NAMES


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_one_line_for_each_stage_on_a_terminal_alone(
    options: Options, kind: type[io.StringIO], shown: bool
) -> None:
    stream = kind()
    progress = Progress(stream)
    process(options, FakeSfm().open, progress)
    progress.end()
    lines = [line.split("\r")[-1] for line in stream.getvalue().splitlines()] if shown else []
    last = ["photos: 3 of 3 read", "features: 3 of 3 pictures", "matches (exhaustive): 3 of 3 pairs"]
    text = stream.getvalue()
    assert all((line in text) is shown for line in last)
    assert text.count("\n") == (4 if shown else 0)
    assert bool(lines) is shown
