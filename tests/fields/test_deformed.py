"""A canonical field that is seen through a warp."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.capabilities import states
from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.fields import DeformedField, InstantNGPField, RadianceField, VanillaField
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, PackedSamples, Rays
from tests.executors.fits import PlainField

D_NERF: dict[str, Any] = {
    "width": 256,
    "hidden_layers": 8,
    "skip": 4,
    "position_frequencies": 10,
    "time_frequencies": 10,
    "identity_at_zero": True,
}
BOXES = ([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]], [[-10.0, 0.0, 5.0], [20.0, 7.0, 6.0]])
FIRST, LAST = 2.0, 5.0


class Blob(RadianceField):
    """A Gaussian of density, with colors that vary along x: smooth in the position."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.7))

    def density(self, positions: Tensor) -> Tensor:
        return 5 * (-positions.square().sum(-1) / self.size.square()).exp()

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        return FieldOutput(self.density(positions), (positions + directions).sigmoid())


class Choosy(Blob):
    """Wants all that there is."""

    wants = ("cameras", "times", "footprints")

    def density(self, positions: Tensor, *, times: Tensor, footprints: Tensor) -> Tensor:  # type: ignore[override]
        return super().density(positions) * times + footprints

    def forward(  # type: ignore[override]
        self, positions: Tensor, directions: Tensor, *, times: Tensor, cameras: Tensor, footprints: Tensor
    ) -> FieldOutput:
        density = self.density(positions, times=times, footprints=footprints)
        return FieldOutput(density, positions.sigmoid(), {"cameras": cameras[:, None].float()})


def bound(canonical: RadianceField | None = None, box: list[list[float]] = BOXES[0], **options: Any) -> DeformedField:
    torch.manual_seed(0)
    field = DeformedField(Blob() if canonical is None else canonical, **options)
    field.bind(SceneBox(torch.tensor(box)))
    field.bind_times(FIRST, LAST)
    return field


def points(n: int = 500, box: list[list[float]] = BOXES[0]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    low, high = torch.tensor(box)
    positions = low + (high - low) * torch.rand(n, 3, generator=generator)
    return positions, FIRST + (LAST - FIRST) * torch.rand(n, generator=generator)


def moved(field: DeformedField) -> DeformedField:
    """With a warp that has learned something."""
    with torch.no_grad():
        for layer in field.warp.layers:
            layer.bias.uniform_(-0.1, 0.1)
        field.warp.layers[-1].weight.uniform_(-0.3, 0.3)
    return field


# -- where it starts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, D_NERF, {"width": 1024, "hidden_layers": 2, "skip": None}], ids=["t", "d", "wide"])
@pytest.mark.parametrize("box", BOXES)
def test_a_new_warp_moves_no_point_by_more_than_a_hundredth_of_the_box(box: list[list[float]], options: Any) -> None:
    field = bound(box=box, **options)
    positions, times = points(box=box)
    distance = (field.warped(positions, times) - positions).norm(dim=-1).detach()
    size = max(high - low for low, high in zip(*box, strict=True))
    assert 0 < float(distance.max()) < 1e-2 * size


@pytest.mark.parametrize("first", [FIRST, 0.1])
def test_the_identity_at_zero_is_exact_at_the_first_time_alone(first: float) -> None:
    field = moved(bound(identity_at_zero=True))
    field.bind_times(first, LAST)
    positions, times = points()
    still = torch.full_like(times, first)
    assert torch.equal(field.warped(positions, still), positions)
    assert torch.equal(field.density(positions, times=still), field.canonical.density(positions))
    assert (field.offsets(positions, times) != 0).any(-1).all()
    free = moved(bound())
    assert (free.offsets(positions, torch.full_like(times, FIRST)) != 0).any(-1).all()


# -- what it computes --------------------------------------------------------------------------------------------------


def test_it_is_the_canonical_field_at_warped_positions() -> None:
    field = moved(bound())
    positions, times = points()
    directions = torch.rand(len(positions), 3)
    there = positions + field.unit_length * field.offsets(positions, times)
    output, expected = field(positions, directions, times=times), field.canonical(there, directions)
    torch.testing.assert_close(output.density, expected.density)
    torch.testing.assert_close(output.rgb, expected.rgb)
    torch.testing.assert_close(field.density(positions, times=times), expected.density)
    torch.testing.assert_close(output.per_sample["offset"], field.offsets(positions, times))


def test_the_warp_is_a_perceptron_on_the_encodings() -> None:
    field = moved(bound(width=16, hidden_layers=3, skip=1, position_frequencies=2, time_frequencies=3))
    positions, times = points()
    x, t = positions, ((times - FIRST) / (LAST - FIRST))[:, None]  # of a box from -1.5 to 1.5
    encoded = torch.cat([x, x.sin(), (2 * x).sin(), x.cos(), (2 * x).cos()], 1)
    encoded = torch.cat([encoded, t, *((2**k * t).sin() for k in range(3)), *((2**k * t).cos() for k in range(3))], 1)
    first, second, third, last = field.warp.layers
    hidden = second(first(encoded).relu()).relu()
    hidden = third(torch.cat([hidden, encoded], 1)).relu()
    torch.testing.assert_close(field.offsets(positions, times), last(hidden), rtol=1e-4, atol=1e-5)


def test_world_units_do_not_matter() -> None:
    field, larger = moved(bound()), moved(bound(box=(10 * torch.tensor(BOXES[0])).tolist()))
    positions, times = points()
    torch.testing.assert_close(10 * field.warped(positions, times), larger.warped(10 * positions, times))


def test_what_the_canonical_field_wants_is_handed_on() -> None:
    field = moved(bound(Choosy()))
    assert set(field.wants) == {"times", "cameras", "footprints"}
    rays = Rays(
        torch.rand(2, 3), torch.rand(2, 3), torch.zeros(2), torch.ones(2), torch.tensor([3.0, 4.0]), torch.tensor([7, 9])
    )
    rays = rays._replace(footprint=torch.full((2,), 0.1))
    t, index = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 0, 1], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 3], dtype=torch.int32)
    samples = PackedSamples(t, t + 0.1, index, offsets, torch.ones(2, dtype=torch.bool))
    output = field.at_samples(rays, samples)
    assert output.extras["cameras"].flatten().tolist() == [7, 7, 9]
    torch.testing.assert_close(output.density, field.query(rays, samples).values)


def test_a_point_that_leaves_the_box_is_as_empty_as_the_canonical_field_says() -> None:
    field = bound(VanillaField(width=16, hidden_layers=2, skip=None, density_activation="softplus"))
    with torch.no_grad():
        field.warp.layers[-1].bias.fill_(0.1)
    inside = torch.tensor([[0.0, 0.0, 0.0], [1.45, 0.0, 0.0]])
    density = field.density(inside, times=torch.full((2,), LAST))
    assert density[0] > 0
    assert density[1] == 0


@pytest.mark.parametrize("n", [0, 1])
def test_any_number_of_points(n: int) -> None:
    field = bound(VanillaField(width=16, hidden_layers=2, skip=None))
    positions, times = points(n)
    assert field(positions, positions, times=times).rgb.shape == (n, 3)


# -- along rays --------------------------------------------------------------------------------------------------------


class Counting(Blob):
    """Keeps the counts that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Tensor | None] = []

    @states("counted")
    def density(self, positions: Tensor, *, count: Tensor | None = None) -> Tensor:
        self.counts.append(count)
        return super().density(positions)

    @states("counted")
    def forward(self, positions: Tensor, directions: Tensor, *, count: Tensor | None = None) -> FieldOutput:
        return FieldOutput(self.density(positions, count=count), positions.sigmoid())


class Overriding(Counting):
    """Does not know of counts."""

    def density(self, positions: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * Blob.density(self, positions)

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:  # type: ignore[override]
        return FieldOutput(self.density(positions), positions.sigmoid())


def samples_with_a_tail(n: int = 40, tail: int = 7) -> tuple[Rays, PackedSamples]:
    """n samples on each of two rays through the box."""
    rays = Rays(
        torch.tensor([[0.0, 0.1, -1.4], [0.2, -0.3, -1.4]]), torch.tensor([[0.0, 0.0, 1.0]] * 2), *[torch.zeros(2)] * 2
    )
    rays = rays._replace(times=torch.tensor([FIRST, 4.0]))
    t = torch.linspace(0, 2.8, n + 1)
    nothing = torch.zeros(tail)
    starts, ends = torch.cat([t[:-1], t[:-1], nothing]), torch.cat([t[1:], t[1:], nothing])
    index = torch.cat([torch.zeros(n), torch.ones(n), nothing]).int()
    return rays, PackedSamples(starts, ends, index, torch.tensor([0, n, 2 * n]).int(), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("kind", [Blob, Counting, Overriding])
@pytest.mark.parametrize("training", [True, False])
def test_along_rays_it_is_what_it_is_at_points(kind: type[Blob], training: bool) -> None:
    field = moved(bound(kind())).train(training)
    rays, samples = samples_with_a_tail()
    n = int(samples.offsets[-1])
    middle = 0.5 * (samples.t_starts + samples.t_ends)[:n]
    index = samples.ray_indices[:n].long()
    positions = rays.origins[index] + middle[:, None] * rays.directions[index]
    assert rays.times is not None
    expected = field.density(positions, times=rays.times[index])
    torch.testing.assert_close(field.query(rays, samples).values[:n], expected)
    torch.testing.assert_close(field.at_samples(rays, samples).density[:n], expected)
    found = field.query(rays, samples, early_stop_eps=1e-3).values[:n]
    light = torch.exp(-torch.cumsum((expected * (samples.t_ends - samples.t_starts)[:n]).view(2, -1), 1)).flatten()
    torch.testing.assert_close(found[light > 1e-2], expected[light > 1e-2])


def test_a_canonical_field_that_counts_is_told_where_samples_end() -> None:
    field = bound(Counting())
    rays, samples = samples_with_a_tail()
    for training, eps in ((True, 0.0), (True, 1e-3), (False, 0.0)):
        field.train(training)
        field.query(rays, samples, early_stop_eps=eps)
        field.at_samples(rays, samples)
    assert [int(count) for count in field.canonical.counts] == [80] * 6  # type: ignore[arg-type]
    field.canonical.counts.clear()
    field.query(rays, samples, early_stop_eps=1e-3)  # in rounds, from front to back
    assert [int(count) for count in field.canonical.counts[:2]] == [16, 24]  # type: ignore[arg-type]
    assert len(field.canonical.counts) == 3


def test_a_vanilla_field_computes_the_rows_that_count() -> None:
    field = VanillaField(width=16, hidden_layers=2, skip=None, density_activation="softplus")
    field.bind(SceneBox(torch.tensor(BOXES[0])))
    positions, count = points(10)[0], torch.tensor([6], dtype=torch.int32)
    assert torch.equal(field.density(positions, count=count)[:6], field.density(positions)[:6])
    output, every = field(positions, positions, count=count), field(positions, positions)
    assert torch.equal(output.rgb[:6], every.rgb[:6])
    assert output.rgb.isfinite().all()


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_finite_differences() -> None:
    field = moved(bound(width=8, hidden_layers=2, skip=0, position_frequencies=2, time_frequencies=2)).double()
    positions, times = (t.double() for t in points(5))
    directions = torch.rand(5, 3, dtype=torch.float64)
    parameters = dict(field.named_parameters())

    def output(*values: Tensor) -> tuple[Tensor, ...]:
        replaced = dict(zip(parameters, values, strict=True))
        found = torch.func.functional_call(field, replaced, (positions, directions), {"times": times})
        return found.density, found.rgb, found.per_sample["offset"]

    assert torch.autograd.gradcheck(output, tuple(parameters.values()))


@pytest.mark.parametrize(
    "canonical",
    [
        lambda: VanillaField(width=16, hidden_layers=2, skip=None, density_activation="softplus"),
        lambda: InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=32, width=16),
        PlainField,
    ],
    ids=["vanilla", "instant_ngp", "users"],
)
def test_gradients_reach_every_layer_through_any_field(canonical: Any) -> None:
    field = moved(bound(canonical()))
    positions, times = points()
    output = field(positions, positions, times=times)
    (output.density.sum() + output.rgb.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_where_the_warp_is_the_identity_it_learns_nothing() -> None:
    field = moved(bound(identity_at_zero=True))
    positions, times = points()
    field.density(positions, times=torch.full_like(times, FIRST)).sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in field.warp.parameters())
    assert field.canonical.size.grad != 0


# -- box, times and checkpoints ----------------------------------------------------------------------------------------


def test_the_canonical_field_learns_box_and_times_from_the_outer_one() -> None:
    inner = DeformedField(Choosy())
    field = bound(inner, box=BOXES[1])
    for each in (field, inner, inner.canonical):
        assert each.scene_box.aabb.tolist() == BOXES[1]
        assert each.unit_times(torch.tensor([3.5])).tolist() == [0.5]
    torch.save(field.state_dict(), file := io.BytesIO())
    file.seek(0)
    other = DeformedField(DeformedField(Choosy()))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert isinstance(other.canonical, DeformedField)
    for each in (other, other.canonical, other.canonical.canonical):
        assert each.is_bound
        assert each.knows_times


def test_before_it_knows_the_times_it_says_so() -> None:
    field = DeformedField(Blob())
    field.bind(SceneBox(torch.tensor(BOXES[0])))
    with pytest.raises(RuntimeError, match="DeformedField knows no range of times"):
        field.density(torch.zeros(1, 3), times=torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"canonical": nn.Linear(3, 1)}, BadType, "canonical: expected RadianceField, got Linear"),
        ({"width": 0}, BadArgument, "width: expected an integer from 1"),
        ({"hidden_layers": 0}, BadArgument, "hidden_layers: expected an integer from 1"),
        ({"skip": 3}, BadArgument, "skips: expected hidden layers before the last of 4, got 3"),
        ({"position_frequencies": 0}, BadArgument, "position_frequencies: expected an integer from 1 to 16"),
        ({"time_frequencies": 17}, BadArgument, "time_frequencies: expected an integer from 1 to 16"),
        ({"identity_at_zero": 1}, BadType, "identity_at_zero: expected bool, got int"),
        ({"fused": "no"}, BadType, "fused: expected bool, got str"),
    ],
)
def test_wrong_arguments_are_refused(options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        DeformedField(**{"canonical": Blob(), **options})
