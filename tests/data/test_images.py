from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from lightning_nerf.data.images import load_images, load_masks, read_rgba, shrink


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
        # Colour and alpha are each rounded to 1/255: half of it from each.
        assert np.abs(on(background, small) - average).max() <= 1.001 / 255
    assert not small[:2, :2].any()


def test_invisible_colours_do_not_bleed() -> None:
    rgba = np.zeros((2, 2, 4), np.float32)
    rgba[..., 0] = 1.0  # red where nothing is seen
    rgba[0, 0] = (0, 0, 1, 1)
    assert shrink(rgba, 2).tolist() == [[[0, 0, 255, 64]]]


def test_a_factor_of_one_keeps_every_visible_byte(tmp_path: Path) -> None:
    picture = random_picture(6, 5, 4)
    images, size = load_images([write(tmp_path / "a.png", picture)])
    assert size == (6, 5)
    assert np.array_equal(images[0].numpy(), picture)


def test_one_picture_with_alpha_gives_all_alpha(tmp_path: Path) -> None:
    opaque, clear = random_picture(4, 5, 3), random_picture(4, 5, 4, seed=1)
    paths = [write(tmp_path / "a.png", opaque), write(tmp_path / "b.png", clear)]
    images, _ = load_images(paths)
    assert images.shape == (2, 4, 5, 4)
    assert images.dtype == torch.uint8
    assert bool((images[0, ..., 3] == 255).all())
    assert np.array_equal(images[1].numpy(), clear)
    images, _ = load_images(paths[:1])
    assert images.shape == (1, 4, 5, 3)
    assert images.is_contiguous()


def test_a_shrunk_mask_keeps_only_whole_pixels(tmp_path: Path) -> None:
    mask = np.full((5, 4), 255, np.uint8)
    mask[0, 1] = 0
    mask[3, 3] = 1  # not 0: drawable
    path = write(tmp_path / "m.png", mask)
    assert torch.equal(load_masks([path, None], 5, 4), torch.stack([torch.from_numpy(mask > 0), torch.ones(5, 4).bool()]))
    assert load_masks([path, None], 5, 4, 2).tolist() == [[[False, True], [True, True]], [[True, True], [True, True]]]
    rgba = np.zeros((5, 4, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[1, 1, 2] = 7
    drawable = load_masks([write(tmp_path / "c.png", rgba)], 5, 4)[0]
    assert drawable.nonzero().tolist() == [[1, 1]]


def test_errors_name_the_file(tmp_path: Path) -> None:
    good, other = (
        write(tmp_path / "good.png", random_picture(4, 5, 3)),
        write(tmp_path / "other.png", random_picture(4, 6, 3)),
    )
    with pytest.raises(ValueError, match=r"other.png: 6x4 pixels, but .*good.png has 5x4"):
        load_images([good, other])
    with pytest.raises(ValueError, match=r"other.png: a mask of 6x4 pixels for an image of 5x4"):
        load_masks([other], 4, 5)
    with pytest.raises(ValueError, match=r"good.png: 5x4 pixels are too few for downscale=5"):
        load_images([good], 5)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"broken.png: cannot be read as an image"):
        load_images([good, broken])
    broken.write_text("not a picture")
    with pytest.raises(ValueError, match=r"broken.png: cannot be read as an image"):
        load_images([broken])
