"""Photos and frames of a video as the pictures that poses are looked for of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.pairs import choose_matcher, choose_pairs
from lightning_nerf.process.pictures import enter_photos, group_by_camera, list_photos
from lightning_nerf.process.video import Video, open_video, sharpest, sharpness, take_frames, wanted_rate
from tests.process.fake import write_photos


def ignore(n: int) -> None:
    pass


def noise(seed: int, blur: float = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)))


def test_photos_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_photos(tmp_path, "p10.png", "p9.JPG", "p1.jpeg", ".hidden.png")
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in list_photos(tmp_path)] == ["p1.jpeg", "p9.JPG", "p10.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least 3 photos .*got 0$"),
        (["a.heic", "b.heic", "c.heic"], "got 0 beside 3 in formats that are not read here; convert"),
        (["in/a.jpg"], "got 0; it has photos in in"),
    ],
)
def test_too_few_photos_are_refused_with_a_hint(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(BadArgument, match=message):
        list_photos(tmp_path)


def test_names_lose_blanks_other_formats_become_png_and_no_name_comes_twice(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", "a b.png", "a_b.png", "c.bmp")
    (tmp_path / "in" / "d.jpg").write_text("no picture")
    names, unreadable = enter_photos(sorted((tmp_path / "in").iterdir()), tmp_path / "out", ignore)
    assert names == ["a_b.png", "a_b_2.png", "c.png"]
    assert unreadable == ["d.jpg"]
    assert (tmp_path / "out" / "a_b.png").read_bytes() == (tmp_path / "in" / "a b.png").read_bytes()
    original = np.asarray(Image.open(tmp_path / "in" / "c.bmp"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "c.png")), original)


def test_a_file_of_another_format_than_its_name_says_is_written_anew(tmp_path: Path) -> None:
    Image.fromarray(noise(0)).save(tmp_path / "a.jpg", "WEBP", lossless=True)
    enter_photos([tmp_path / "a.jpg"], tmp_path / "out", ignore)
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.format == "JPEG"


def write_phone_photo(path: Path, focal: int, orientation: int = 1, size: tuple[int, int] = (32, 24)) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Maker", "Phone"
    exif.get_ifd(0x8769)[0xA405] = focal  # FocalLengthIn35mmFilm
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path, exif=exif)


def test_a_photo_on_its_side_is_turned_and_keeps_its_focal_length(tmp_path: Path) -> None:
    write_phone_photo(tmp_path / "a.jpg", 28, orientation=6)
    enter_photos([tmp_path / "a.jpg"], tmp_path / "out", ignore)
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.size == (24, 32)
        assert picture.getexif().get(0x0112) in (None, 1)
        assert picture.getexif().get_ifd(0x8769)[0xA405] == 28


@pytest.mark.parametrize(
    ("single", "groups"), [(None, ["ab", "c", "d"]), (True, ["abc", "d"]), (False, ["a", "b", "c", "d"])]
)
def test_pictures_of_one_size_and_focal_length_share_a_camera(
    tmp_path: Path, single: bool | None, groups: list[str]
) -> None:
    for name, focal, size in (("a", 28, (32, 24)), ("b", 28, (32, 24)), ("c", 50, (32, 24)), ("d", 28, (24, 32))):
        write_phone_photo(tmp_path / f"{name}.jpg", focal, size=size)
    found = group_by_camera(tmp_path, [f"{name}.jpg" for name in "abcd"], single)
    assert ["".join(name[0] for name in group) for group in found] == groups


def test_a_blurred_picture_is_less_sharp() -> None:
    values = [sharpness(noise(0, blur)) for blur in (0, 1, 3)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * values[1]


@pytest.mark.parametrize(("fps", "n_frames", "count"), [(1.0, None, 4), (None, None, 8), (None, 3, 3), (100.0, None, 24)])
def test_the_sharpest_frame_of_each_interval_is_taken(fps: float | None, n_frames: int | None, count: int) -> None:
    frames = [noise(i, blur=0 if i % 3 == 1 else 2) for i in range(24)]
    video = Video(6.0, 4.0, iter(frames))
    seen: list[int] = []
    taken = list(sharpest(video.frames, video.fps, wanted_rate(video, fps, n_frames), seen.append))
    assert len(taken) == count
    assert seen == list(range(1, 25))
    if count < 24:
        assert all(any(np.array_equal(frame, frames[i]) for i in range(1, 24, 3)) for frame in taken)


def test_a_long_video_gives_300_frames_and_a_short_one_is_refused(tmp_path: Path) -> None:
    assert wanted_rate(Video(30.0, 1000.0, iter([])), None, None) == pytest.approx(0.3)
    with pytest.raises(BadArgument, match="expected at least 3 frames, got 1"):
        take_frames(Video(6.0, 0.4, iter([noise(0)])), 2.0, tmp_path, ignore)


def test_a_video_without_the_plugin_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(BadArgument, match=r"not installed; pip install 'imageio\[ffmpeg\]'"):
        open_video(tmp_path / "walk.mp4")


@pytest.mark.parametrize(
    ("n", "is_video", "matcher"), [(100, False, "exhaustive"), (101, False, "sequential"), (5, True, "sequential")]
)
def test_few_photos_are_matched_exhaustively(n: int, is_video: bool, matcher: str) -> None:
    assert choose_matcher("auto", n, is_video) == matcher
    assert choose_matcher("exhaustive", n, is_video) == "exhaustive"


def test_sequential_pairs_have_neighbors_and_far_ones_and_close_a_loop() -> None:
    names = [f"{i:03d}" for i in range(300)]
    pairs = choose_pairs("sequential", names)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) < 7500
    assert all(first < second for first, second in pairs)
    for i, j in ((0, 1), (50, 60), (50, 114), (0, 299), (0, 152)):
        assert (names[i], names[j]) in pairs
    assert len(choose_pairs("exhaustive", names[:5])) == 10
    assert set(choose_pairs("sequential", names[:3])) == set(choose_pairs("exhaustive", names[:3]))
