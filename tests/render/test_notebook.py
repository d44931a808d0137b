"""Views as pictures in a notebook, which asks an object for `_repr_png_`."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_nerf.render.pictures import image
from lightning_nerf.types import Render
from tests.scenes import tiny_module, tiny_scene, trainer


def view(height: int = 2, width: int = 3) -> Render:
    """Red on the left, where depths are 1, 2, ...; nothing but a white background in the last column."""
    rgb = torch.ones(height, width, 3)
    rgb[:, :-1] = torch.tensor([1.0, 0.0, 0.5])
    opacity = torch.ones(height, width)
    opacity[:, -1] = 0
    depth = opacity * torch.arange(1.0, width + 1)
    return Render(rgb, opacity, depth, opacity.int(), {"normal": rgb.flip(-1), "code": rgb.repeat(1, 1, 2)})


def test_a_view_shows_itself_as_a_picture() -> None:
    png = view()._repr_png_()
    assert png is not None
    shown = np.array(Image.open(BytesIO(png)))
    assert shown.tolist() == [[[255, 0, 128], [255, 0, 128], [255, 255, 255]]] * 2


def test_rays_that_are_no_picture_show_none() -> None:
    assert view()._replace(rgb=torch.ones(4, 3))._repr_png_() is None


def test_a_view_of_a_module_shows_itself(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module()
    trainer(tmp_path, max_steps=1).fit(module, tiny_scene(scene_cache))
    png = module.render_view("test", 0)._repr_png_()
    assert png is not None
    assert Image.open(BytesIO(png)).size == (24, 24)


@pytest.mark.parametrize(
    ("channel", "first_row"),
    [
        ("rgb", [(255, 0, 128), (255, 0, 128), (255, 255, 255)]),
        ("opacity", [(255, 255, 255), (255, 255, 255), (0, 0, 0)]),
        ("normal", [(128, 0, 255), (128, 0, 255), (255, 255, 255)]),
        ("depth", [(69, 0, 84), (252, 232, 36), (0, 0, 0)]),  # from the least distance of this view to its greatest
        ("rgba", [(255, 0, 128, 255), (255, 0, 128, 255), (0, 0, 0, 0)]),
    ],
)
def test_every_channel_is_an_image(channel: str, first_row: list[tuple[int, ...]]) -> None:
    shown = image(view(), channel, background=torch.ones(3))
    assert shown.size == (3, 2)
    assert [shown.getpixel((x, 0)) for x in range(3)] == first_row


def test_depth_without_a_range_of_its_own_is_shown() -> None:
    flat = view(2, 2)  # one distance and nothing
    assert image(flat, "depth").getpixel((0, 0)) == (69, 0, 84)
    assert image(flat._replace(opacity=torch.zeros(2, 2)), "depth").getpixel((0, 0)) == (0, 0, 0)
    assert image(view(), "depth", (0.0, 1.0)).getpixel((0, 0)) == (252, 232, 36)


@pytest.mark.parametrize(
    ("render", "channel", "message"),
    [
        (
            view()._replace(rgb=torch.ones(4, 3)),
            "rgb",
            r"^render: expected a view, with rgb \[H, W, 3\], got rgb \[4, 3\]$",
        ),
        (view(), "normals", "^channel: this model renders rgb, rgba, depth, opacity, normal, code, got 'normals'$"),
        (view(), "code", "^channel: expected one or three numbers per pixel, 'code' has 6$"),
        (view(), "rgba", "^background: expected the color that the view is composited on"),
    ],
)
def test_what_cannot_be_shown_is_named(render: Render, channel: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image(render, channel)
