"""Rays, backgrounds and cameras of wrong shapes, which slices of chunks and bands would hide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import Cameras, FieldOutput, FrameRenderer, OccupancyGrid, RadianceField, Rays, SceneBox, VolumeRenderer
from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import as_query
from lightning_nerf.types import Densities, Query

BOX = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
GRID = OccupancyGrid(resolution=4, step_size=0.2).bind(BOX)


class Coded(RadianceField):
    """Sees which camera looks, and through how large a pixel."""

    wants = ("cameras", "footprints")

    def density(self, positions: Tensor, footprints: Tensor | None = None) -> Tensor:
        return torch.ones(len(positions))

    def forward(self, positions: Tensor, directions: Tensor, cameras: Tensor, footprints: Tensor) -> FieldOutput:  # type: ignore[override]
        return FieldOutput(self.density(positions), torch.stack([cameras, footprints, footprints], 1).float())


def rays(**changes: Any) -> Rays:
    origins, directions = torch.tensor([[0.0, 0, 3]]).repeat(5, 1), torch.tensor([[0.0, 0, -1]]).repeat(5, 1)
    codes = {"times": torch.zeros(5), "cameras": torch.arange(5), "footprint": torch.ones(5)}
    return Rays(origins, directions, torch.zeros(5), torch.full((5,), 9.0), **{**codes, **changes})


def frames(max_samples: int) -> FrameRenderer:
    field = Coded()
    field.bind(BOX)
    return FrameRenderer(field, GRID, VolumeRenderer(), max_samples)


WRONG = [
    ({"cameras": torch.arange(3)}, r"rays.cameras: expected shape \[5\], got \[3\]"),
    ({"cameras": torch.arange(9)}, r"rays.cameras: expected shape \[5\], got \[9\]"),
    ({"cameras": torch.zeros(5, 1).long()}, r"rays.cameras: expected shape \[5\], got \[5, 1\]"),
    ({"cameras": torch.zeros(5)}, "rays.cameras: expected dtype torch.int64, got torch.float32"),
    ({"footprint": torch.ones(3)}, r"rays.footprint: expected shape \[5\], got \[3\]"),
    ({"footprint": torch.ones(9)}, r"rays.footprint: expected shape \[5\], got \[9\]"),
    ({"footprint": torch.ones(5).double()}, "rays.footprint: expected dtype torch.float32, got torch.float64"),
]


@pytest.mark.parametrize("max_samples", [1, 1000])
@pytest.mark.parametrize(
    ("change", "message"), [*WRONG, ({"times": torch.zeros(3)}, r"rays.times: expected shape \[5\], got \[3\]")]
)
def test_rays_of_other_lengths_are_named(change: dict[str, Tensor], message: str, max_samples: int) -> None:
    with pytest.raises(BadArgument, match=message):
        frames(max_samples).rays(rays(**change))


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_field_takes_only_what_each_ray_has(change: dict[str, Tensor], message: str) -> None:
    field = Coded()
    field.bind(BOX)
    with pytest.raises(BadArgument, match=message):
        field.at_samples(rays(**change), GRID.place(rays()).samples)


@pytest.mark.parametrize("max_samples", [1, 1000])
@pytest.mark.parametrize(
    "background", [[1, 1, 1], 1.0, "white", *map(torch.ones, [(4,), (6, 3), (4, 3), (1, 3), (5, 4), ()])]
)
def test_backgrounds_of_other_shapes_are_named(background: Any, max_samples: int) -> None:
    with pytest.raises(BadArgument, match=r"^background: expected"):
        frames(max_samples).rays(rays(), background)


def test_chunks_of_one_ray_are_the_same_picture() -> None:
    background = torch.rand(5, 3)
    torch.testing.assert_close(frames(1).rays(rays(), background).rgb, frames(1000).rays(rays(), background).rgb)
    assert frames(1).rays(rays().map(lambda t: t[:0]), background[:0]).rgb.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intrinsics": torch.tensor([2.0, 2, 2, 2])}, r"cameras.intrinsics: expected shape \[2, 4\], got \[4\]"),
        ({"bounds": torch.tensor([1.0, 2])}, r"cameras.bounds: expected shape \[2, 2\], got \[2\]"),
        ({"times": torch.zeros(1)}, r"cameras.times: expected shape \[2\], got \[1\]"),
        ({"c2w": torch.zeros(2, 3, 4).double()}, "cameras.c2w: expected dtype torch.float32, got torch.float64"),
    ],
)
def test_cameras_of_other_shapes_are_named(change: dict[str, Tensor], message: str) -> None:
    poses = torch.eye(4)[None, :3].repeat(2, 1, 1)
    cameras = Cameras.of_one_size(poses, torch.tensor([2.0, 2, 2, 2]), 4, 4, near=1.0, far=5.0)
    with pytest.raises(BadArgument, match=message):
        frames(1000).frame(cameras._replace(**change), 1)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match=r"background: expected shape \[3\], got \[16, 3\]"):
        frames(1000).frame(cameras, 1, torch.ones(16, 3))
    with pytest.raises(BadArgument, match="cameras: expected Cameras, got tuple"):
        frames(1000).frame(tuple(cameras), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.ones(50), "query: expected Densities, got Tensor"),
        ((torch.ones(50), None), "query: expected Densities, got tuple"),
        (None, "query: expected Densities, got NoneType"),
        (Densities(torch.ones(3)), r"densities: expected shape \[50\], got \[3\]"),
    ],
)
def test_answers_to_a_query_are_named(answer: Any, message: str) -> None:
    query: Query = lambda rays, samples, early_stop_eps=0.0: answer  # noqa: E731
    with pytest.raises(BadArgument, match=message):
        GRID.place(rays(), query)
    assert len(GRID.place(rays(), as_query(lambda x, times: torch.ones(len(x)))).samples.t_starts) == 50
