from __future__ import annotations

import struct
import zlib
from pathlib import Path
from unittest import mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_nerf.data.images import read_masks, read_pictures, read_rgba, shrink


def random_picture(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def write(path: Path, picture: np.ndarray) -> Path:
    iio.imwrite(path, picture, plugin="pillow")
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_becomes_rgba(tmp_path: Path, channels: int) -> None:
    picture = random_picture(4, 5, channels)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    iio.imwrite(tmp_path / "a.png", picture[..., 0] if channels == 1 else picture, plugin="pillow", mode=mode)
    rgba, has_alpha = read_rgba(tmp_path / "a.png")
    assert has_alpha == (channels in (2, 4))
    assert np.array_equal(rgba[..., :3], np.broadcast_to(picture[..., : 1 if channels < 3 else 3], (4, 5, 3)))
    assert np.array_equal(rgba[..., 3], picture[..., -1] if has_alpha else np.full((4, 5), 255))


def test_sixteen_bits_and_one_bit(tmp_path: Path) -> None:
    picture = random_picture(4, 5, dtype=np.uint16)
    rgba, _ = read_rgba(write(tmp_path / "deep.png", picture))
    assert np.array_equal(rgba[..., 0], np.round(picture / 257).astype(np.uint8))
    rgba, _ = read_rgba(write(tmp_path / "flat.png", picture > 30_000))
    assert np.array_equal(rgba[..., 1], np.where(picture > 30_000, 255, 0))


def test_shrinking_averages_what_is_seen() -> None:
    """Composited on any background, the shrunk picture is the average of the composited picture."""
    rgba = random_picture(7, 9, 4).astype(np.float32) / 255
    rgba[:4, :4, 3] = 0
    small = shrink(rgba, 2).astype(np.float32) / 255
    assert small.shape == (3, 4, 4)

    def on(background: float, picture: np.ndarray) -> np.ndarray:
        return picture[..., :3] * picture[..., 3:] + (1 - picture[..., 3:]) * background

    for background in (0.0, 0.3, 1.0):
        average = on(background, rgba)[:6, :8].reshape(3, 2, 4, 2, 3).mean((1, 3))
        # Color and alpha are each rounded to 1/255: half of it from each.
        assert np.abs(on(background, small) - average).max() <= 1.001 / 255
    assert not small[:2, :2].any()


def test_invisible_colors_do_not_bleed() -> None:
    rgba = np.zeros((2, 2, 4), np.float32)
    rgba[..., 0] = 1.0  # red where nothing is seen
    rgba[0, 0] = (0, 0, 1, 1)
    assert shrink(rgba, 2).tolist() == [[[0, 0, 255, 64]]]


def test_a_factor_of_one_keeps_every_visible_byte(tmp_path: Path) -> None:
    picture = random_picture(6, 5, 4)
    (read,), sizes = read_pictures([write(tmp_path / "a.png", picture)])
    assert sizes == [(6, 5)]
    assert np.array_equal(read.numpy(), picture)


def test_one_picture_with_alpha_gives_all_alpha(tmp_path: Path) -> None:
    opaque, clear = random_picture(4, 5, 3), random_picture(4, 5, 4, seed=1)
    paths = [write(tmp_path / "a.png", opaque), write(tmp_path / "b.png", clear)]
    (first, second), _ = read_pictures(paths)
    assert first.shape == (4, 5, 4)
    assert first.dtype == torch.uint8
    assert np.array_equal(first[..., :3].numpy(), opaque)
    assert bool((first[..., 3] == 255).all())
    assert np.array_equal(second.numpy(), clear)
    (first,), _ = read_pictures(paths[:1])
    assert first.shape == (4, 5, 3)
    assert first.is_contiguous()


def test_pictures_of_any_sizes_are_read_together(tmp_path: Path) -> None:
    shapes = [(4, 5), (7, 6), (2, 3)]
    paths = [write(tmp_path / f"{i}.png", random_picture(*shape, 3, seed=i)) for i, shape in enumerate(shapes)]
    pictures, sizes = read_pictures(paths)
    assert sizes == shapes
    for i, (picture, shape) in enumerate(zip(pictures, shapes, strict=True)):
        assert np.array_equal(picture.numpy(), random_picture(*shape, 3, seed=i))
    pictures, sizes = read_pictures(paths, 2)
    assert sizes == shapes
    assert [tuple(picture.shape) for picture in pictures] == [(2, 2, 3), (3, 3, 3), (1, 1, 3)]


def test_a_shrunk_mask_keeps_only_whole_pixels(tmp_path: Path) -> None:
    mask = np.full((5, 4), 255, np.uint8)
    mask[0, 1] = 0
    mask[3, 3] = 1  # not 0: drawable
    paths, sizes = [write(tmp_path / "m.png", mask), None], [(5, 4), (3, 5)]
    whole = read_masks(paths, sizes)
    assert torch.equal(whole[0], torch.from_numpy(mask > 0))
    assert torch.equal(whole[1], torch.ones(3, 5).bool())
    assert [m.tolist() for m in read_masks(paths, sizes, 2)] == [[[False, True], [True, True]], [[True, True]]]
    rgba = np.zeros((5, 4, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[1, 1, 2] = 7
    drawable = read_masks([write(tmp_path / "c.png", rgba)], [(5, 4)])[0]
    assert drawable.nonzero().tolist() == [[1, 1]]


RED_GREEN_BLUE = [255, 0, 0, 0, 255, 0, 0, 0, 255]


@pytest.mark.parametrize(
    ("transparency", "alphas"),
    [(None, (255, 255, 255)), (1, (255, 0, 255)), (bytes([10, 200, 255]), (10, 200, 255))],
    ids=["opaque", "one entry", "alpha per entry"],
)
def test_a_palette_keeps_its_alpha(tmp_path: Path, transparency: int | bytes | None, alphas: tuple[int, ...]) -> None:
    entries = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    picture = Image.fromarray(entries)
    picture.putpalette(RED_GREEN_BLUE)
    assert picture.mode == "P"
    picture.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    rgba, has_alpha = read_rgba(tmp_path / "a.png")
    assert has_alpha == (transparency is not None)
    assert np.array_equal(rgba[..., :3], 255 * np.eye(3, dtype=np.uint8)[entries])
    assert np.array_equal(rgba[..., 3], np.array(alphas)[entries])


@pytest.mark.parametrize(("mode", "transparent"), [("1", 255), ("L", 7), ("RGB", (7, 7, 7)), ("I;16", 1799)])
def test_a_transparent_color_is_transparent(tmp_path: Path, mode: str, transparent: int | tuple[int, ...]) -> None:
    values = np.full((4, 5), 9, np.uint8)
    values[1:3, 2] = 7
    at = values == 7
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 257)
        assert picture.mode == mode
    else:
        picture = Image.fromarray(at if mode == "1" else values).convert(mode)
    picture.save(tmp_path / "a.png", transparency=transparent)
    rgba, has_alpha = read_rgba(tmp_path / "a.png")
    assert has_alpha
    assert np.array_equal(rgba[..., 3], np.where(at, 0, 255))
    assert np.array_equal(rgba[..., 0], np.where(at, 255, 0) if mode == "1" else values)


def test_a_transparent_color_of_sixteen_bits_per_channel_is_transparent(tmp_path: Path) -> None:
    """Written by hand: Pillow reads such files but writes none."""
    values = np.full((4, 5, 3), 0x0908, ">u2")
    values[2, 1] = 0xC835

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header, transparent = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0), struct.pack(">3H", *[0xC835] * 3)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))
    rgba, has_alpha = read_rgba(tmp_path / "a.png")
    assert has_alpha
    assert np.array_equal(rgba[..., 3], np.where(values[..., 0] == 0xC835, 0, 255))


def test_cmyk_becomes_rgb_without_alpha(tmp_path: Path) -> None:
    color = (200, 100, 50)
    Image.new("RGB", (8, 8), color).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    rgba, has_alpha = read_rgba(tmp_path / "a.jpg")
    assert not has_alpha
    assert bool((rgba[..., 3] == 255).all())
    assert np.abs(rgba[..., :3].astype(int) - color).max() <= 3  # JPEG


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "YCbCr", "HSV"])
def test_other_modes_keep_their_colors(tmp_path: Path, mode: str) -> None:
    has_alpha = mode not in ("YCbCr", "HSV")
    start = Image.new("RGBA", (3, 2), (120, 120, 120, 128)) if has_alpha else Image.new("RGB", (3, 2), (120, 120, 120))
    picture = start.convert("LA").convert(mode) if mode == "La" else start.convert(mode)
    with mock.patch.object(Image, "open", return_value=picture):
        rgba, read_alpha = read_rgba(tmp_path / "a.tif")
    assert read_alpha == has_alpha
    assert np.abs(rgba.astype(int) - (120, 120, 120, 128 if has_alpha else 255)).max() <= 1


def test_errors_name_the_file(tmp_path: Path) -> None:
    good, other = (
        write(tmp_path / "good.png", random_picture(4, 5, 3)),
        write(tmp_path / "other.png", random_picture(4, 6, 3)),
    )
    with pytest.raises(ValueError, match=r"other.png: a mask of 6x4 pixels for an image of 5x4"):
        read_masks([other], [(4, 5)])
    with pytest.raises(ValueError, match=r"good.png: 5x4 pixels are too few for downscale=5"):
        read_pictures([good], 5)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"broken.png: cannot be read as an image"):
        read_pictures([good, broken])
    broken.write_text("not a picture")
    with pytest.raises(ValueError, match=r"broken.png: cannot be read as an image"):
        read_pictures([broken])
    Image.new("F", (3, 2)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif: expected 8 or 16 bits per channel, got float32"):
        read_pictures([tmp_path / "float.tif"])
    Image.new("LAB", (3, 2)).save(tmp_path / "lab.tif")
    with pytest.raises(ValueError, match=r"lab.tif: expected RGB, grey, CMYK or a palette, got LAB"):
        read_pictures([tmp_path / "lab.tif"])
    frames = [Image.new("L", (3, 2), i) for i in (0, 255)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"film.gif: expected one picture, got 2"):
        read_pictures([tmp_path / "film.gif"])
