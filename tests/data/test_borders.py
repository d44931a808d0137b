"""The hint for pictures without alpha that were taken on another background than the fit assumes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data import Images, NeRFDataModule, Scene, Source
from lightning_nerf.data.borders import border_hint
from tests.scenes import tiny_module, trainer


def picture(border: int, inside: int = 128, channels: int = 3) -> Tensor:
    result = torch.full((12, 16, channels), border, dtype=torch.uint8)
    result[3:-3, 3:-3] = inside
    return result


def scene(*pictures: Tensor, mask: Tensor | None = None) -> Scene:
    n = len(pictures)
    cameras = Cameras.of_one_size(torch.eye(4)[None, :3].repeat(n, 1, 1), torch.tensor([20.0, 20, 8, 6]), 16, 12)
    masks = None if mask is None else [mask] * n
    return Scene(cameras, Images.from_pictures(list(pictures), masks), [str(i) for i in range(n)])


def touching_the_border() -> Tensor:
    result = picture(0)
    result[:, 4:12] = 128  # 16 of the border's 56 pixels
    return result


@pytest.mark.parametrize(
    ("views", "background", "named"),
    [
        (scene(picture(0)), "white", "black"),
        (scene(picture(5)), "white", "black"),  # as JPEG leaves it
        (scene(picture(255)), "black", "white"),
        (scene(picture(0)), "black", None),
        (scene(picture(255)), "white", None),
        (scene(picture(100)), "white", None),
        (scene(picture(0, channels=4)), "white", None),  # alpha says what is empty
        (scene(picture(0, inside=0)), "white", None),  # nothing is seen at all
        (scene(touching_the_border()), "white", None),
        (scene(*[picture(0)] * 24, touching_the_border()), "white", "black"),
        (scene(picture(0), mask=torch.ones(12, 16, dtype=torch.bool)), "white", None),
        (scene(), "white", None),
    ],
)
def test_borders_tell_what_the_pictures_were_taken_on(views: Scene, background: str, named: str | None) -> None:
    hint = border_hint(views, background)
    assert (hint is None) if named is None else (hint is not None and f"--data.background={named}" in hint)


class OnBlack(Source):
    def read(self, split: str) -> Scene:
        return scene(picture(0))


@pytest.mark.parametrize(("background", "said"), [("white", 1), ("random", 1), ("black", 0)])
def test_a_fit_on_the_wrong_background_says_so_once(tmp_path: Path, background: str, said: int) -> None:
    data = NeRFDataModule(OnBlack(), aabb=[[-1, -1, -4], [1, 1, -2]], background=background)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1).fit(tiny_module(), data)
    assert sum("black borders" in str(w.message) for w in caught) == said
