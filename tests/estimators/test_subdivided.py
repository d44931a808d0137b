"""One density for several steps of a ray: what survives is cut into single steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf import (
    Densities,
    FieldOutput,
    FrameRenderer,
    OccupancyGrid,
    PackedSamples,
    RadianceField,
    Rays,
    SceneBox,
    VolumeRenderer,
)
from lightning_nerf.estimators.subdivided import subdivided
from tests.ops.harness import DEVICES, generator

BOX = [-1.0, -1, -1, 1, 1, 1]


def rays(n: int, device: str) -> Rays:
    """From a sphere of radius 3 towards the middle of the box, more or less."""
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator(0)), dim=-1) * 3
    directions = 0.4 * torch.randn(n, 3, generator=generator(1)) - origins / 3
    return Rays(origins, directions, torch.zeros(n), torch.full((n,), 9.0)).map(lambda t: t.to(device))


def ball(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
    """Density 30 within half a unit of the middle, else 0."""
    index = samples.ray_indices.long()
    middle = 0.5 * (samples.t_starts + samples.t_ends)
    at = rays.origins[index] + middle[:, None] * rays.directions[index]
    return Densities(30.0 * (at.norm(dim=-1) < 0.5))


def grid(device: str, **options: float) -> OccupancyGrid:
    found = OccupancyGrid(resolution=16, alpha_threshold=0.0, early_stop_eps=0.01, **options)  # type: ignore[arg-type]
    return found.bind(BOX).to(device)  # type: ignore[return-value]


def lists(samples: PackedSamples) -> list[Tensor]:
    n = int(samples.offsets[-1])
    return [samples.t_starts[:n], samples.t_ends[:n], samples.ray_indices[:n], samples.offsets, samples.kept]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("extra", [None, 0, 5])
def test_parts_are_equal_and_adjoin_and_the_rest_is_tail(device: str, parts: int, extra: int | None) -> None:
    whole = grid(device, step_size=0.1, cone_angle=0.01).place(rays(20, device), ball).samples
    n = len(whole.t_starts)
    assert n > 100
    cut = subdivided(whole, parts, None if extra is None else n * parts + extra)
    assert len(cut.t_starts) == n * parts + (extra or 0)
    starts, ends = cut.t_starts[: n * parts].view(n, parts), cut.t_ends[: n * parts].view(n, parts)
    assert torch.equal(starts[:, 0], whole.t_starts)
    assert torch.equal(ends[:, -1], whole.t_ends)
    assert torch.equal(starts[:, 1:], ends[:, :-1])
    lengths = (whole.t_ends - whole.t_starts) / parts
    torch.testing.assert_close(ends - starts, lengths[:, None].expand(n, parts), rtol=0, atol=4e-7 * 9)
    assert torch.equal(cut.offsets, whole.offsets * parts)
    assert torch.equal(cut.ray_indices[: n * parts].view(n, parts), whole.ray_indices[:, None].expand(n, parts))
    assert not any(values[n * parts :].any() for values in cut[:3])
    assert torch.equal(cut.kept, whole.kept)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [2, 3])
def test_what_survives_is_what_a_march_of_longer_steps_keeps(device: str, steps: int) -> None:
    key = torch.tensor([1, 0, 7], device=device)
    several = grid(device, step_size=0.05, steps_per_query=steps).place(rays(50, device), ball, key=key)
    longer = grid(device, step_size=0.05 * steps).place(rays(50, device), ball, key=key)
    assert several.evaluated is None
    assert all(torch.equal(a, b) for a, b in zip(several.samples, subdivided(longer.samples, steps), strict=True))
    assert len(several.samples.t_starts) > 100


class Fog(RadianceField):
    """The same opacity in each single step."""

    def __init__(self, opacity: float, step_size: float) -> None:
        super().__init__()
        self.value = -math.log1p(-opacity) / step_size
        self.bind(SceneBox(torch.tensor(BOX).view(2, 3)))

    def density(self, positions: Tensor) -> Tensor:
        return torch.full_like(positions[:, 0], self.value)

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        return FieldOutput(self.density(positions), torch.ones_like(positions))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("opacity", "is_seen"), [(0.003, False), (0.0049, False), (0.0051, True), (0.3, True)])
def test_fog_is_placed_where_frames_show_it(device: str, steps: int, opacity: float, is_seen: bool) -> None:
    """The threshold is that of a single step: what frames, which prune single steps, never show is not trained."""
    field = Fog(opacity, step_size=0.05).to(device)
    estimator = OccupancyGrid(resolution=16, step_size=0.05, alpha_threshold=0.005, steps_per_query=steps)
    estimator.bind(BOX).to(device)
    estimator.mean.fill_(1.0)  # no young grid, which would lower the threshold
    count = int(estimator.place(rays(50, device), field.query).samples.offsets[-1])
    assert (count > 100) == is_seen
    assert count == 0 or is_seen
    render = FrameRenderer(field, estimator, VolumeRenderer()).rays(rays(50, device))
    assert bool(render.opacity.any()) == is_seen


@pytest.mark.parametrize("device", DEVICES)
def test_a_capacity_holds_the_same_samples_and_drops_whole_rays(device: str) -> None:
    estimator = grid(device, step_size=0.05, steps_per_query=2)
    exact = estimator.place(rays(50, device), ball).samples
    enough = len(exact.t_starts) + 3
    roomy = estimator.place(rays(50, device), ball, capacity=enough, march_capacity=2**14).samples
    assert len(roomy.t_starts) == enough
    assert all(torch.equal(a, b) for a, b in zip(lists(roomy), lists(exact), strict=True))
    tight = estimator.place(rays(50, device), ball, capacity=101, march_capacity=2**14).samples
    assert len(tight.t_starts) == 101
    assert not tight.kept.all()
    assert 0 < int(tight.offsets[-1]) <= 100


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_query_steps_are_single(device: str) -> None:
    several, single = (
        grid(device, step_size=0.05, steps_per_query=steps).place(rays(9, device)).samples for steps in (4, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(several, single, strict=True))


def test_the_number_of_steps_is_checked() -> None:
    for wrong in (0, 65, 1.5):
        with pytest.raises((ValueError, TypeError), match="steps_per_query"):
            OccupancyGrid(steps_per_query=wrong)  # type: ignore[arg-type]
