"""Losses on what moves, and on what is encoded, against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.fields import DeformedField, InstantNGPField, RadianceField, VanillaField
from lightning_nerf.losses import Loss, PerturbationTV, TemporalSmoothness, WarpSize
from lightning_nerf.ops.random import make_key
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, RayBatch, Rays, Render, Step
from tests.executors.fits import PlainField

BOX = SceneBox(torch.tensor([[-3.0, -3, -3], [3, 3, 3]]))  # of unit length 2
FIRST, LAST = 2.0, 5.0


class Growing(RadianceField):
    """Density and features are linear in position and time."""

    wants = ("times",)

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.slopes = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, -4.0]]))

    def density(self, positions: Tensor, *, times: Tensor) -> Tensor:  # type: ignore[override]
        return self.rate * times

    def forward(self, positions: Tensor, directions: Tensor, *, times: Tensor) -> FieldOutput:  # type: ignore[override]
        return FieldOutput(self.density(positions, times=times), positions.sigmoid())

    def encoded(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        points = torch.cat([positions, positions.new_zeros(len(positions), 1) if times is None else times[:, None]], 1)
        return points @ self.slopes.T


class Sliding(Growing):
    """Its warp is the time, along x."""

    def offsets(self, positions: Tensor, times: Tensor) -> Tensor:
        return self.rate * torch.stack([times, 0 * times, 0 * times], -1)

    def forward(self, positions: Tensor, directions: Tensor, *, times: Tensor) -> FieldOutput:  # type: ignore[override]
        output = super().forward(positions, directions, times=times)
        return output._replace(per_sample={"offset": self.offsets(positions, times)})


def one_step(
    field: RadianceField, n: int = 2000, timed: bool = True, counts: tuple[bool, bool, bool] = (True, True, True)
) -> Step:
    """n samples on each of two rays, none on a third, and a tail that holds nonsense."""
    field.bind(BOX)
    field.bind_times(FIRST, LAST)
    rays = Rays(torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(3), torch.ones(3))
    rays = rays._replace(times=torch.tensor([FIRST, LAST, 3.0])) if timed else rays
    t = torch.linspace(0, 1, n + 1)
    tail = torch.zeros(7)
    index = torch.cat([torch.zeros(n), torch.ones(n), tail]).int()
    samples = PackedSamples(
        torch.cat([t[:-1], t[:-1], tail]),
        torch.cat([t[1:], t[1:], tail]),
        index,
        torch.tensor([0, n, 2 * n, 2 * n], dtype=torch.int32),
        torch.tensor(counts),
    )
    output = field.at_samples(rays, samples)
    weights = torch.cat([torch.full((n,), 3.0), torch.full((n,), 1.0), tail])
    render = Render(torch.rand(3, 3), torch.rand(3), torch.rand(3), torch.zeros(3).int(), weights=weights)
    batch = RayBatch(rays, torch.rand(3, 3))
    return Step(batch, torch.ones(3), Placement(samples), output, render, logs={}, field=field, key=make_key(1))


# -- warp size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((True, True, True), (3 * (0.5 * FIRST) ** 2 + (0.5 * LAST) ** 2) / 4),
        ((True, False, True), (0.5 * FIRST) ** 2),
        ((False, False, True), 0.0),
    ],
)
def test_the_warp_size_is_the_mean_square_of_offsets_that_are_seen(counts: Any, expected: float) -> None:
    field = Sliding()
    loss = WarpSize()(one_step(field, counts=counts))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert field.rate.grad is not None
    assert float(field.rate.grad) == pytest.approx(2 * expected / 0.5, rel=1e-5)


def test_the_warp_size_makes_nothing_transparent() -> None:
    step = one_step(Sliding())
    assert step.render.weights is not None
    weights = step.render.weights.requires_grad_()
    WarpSize()(step._replace(render=step.render._replace(weights=weights))).backward()
    assert weights.grad is None


def test_a_warp_of_a_deformed_field_is_its_offsets_in_thirds_of_the_box() -> None:
    field = DeformedField(PlainField())
    with torch.no_grad():
        field.warp.layers[-1].weight.zero_()
        field.warp.layers[-1].bias.copy_(torch.tensor([0.3, 0.0, 0.4]))
    assert float(WarpSize()(one_step(field)).detach()) == pytest.approx(0.25)


# -- smoothness in time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["opacity", "offset"])
def test_the_smoothness_in_time_is_the_mean_square_of_changes(of: str) -> None:
    field, share = Sliding(), 0.1
    means = []
    for seed in range(200):  # two rays, hence two shifts a step
        step = one_step(field, n=20)._replace(key=make_key(seed))
        means.append(TemporalSmoothness(of=of, max_shift=share)(step).detach())
    # A shift is uniform in a direction that the range allows, or 0: half of the mean of s^2 in [0, 0.3].
    shift = (share * (LAST - FIRST)) ** 2 / 3 / 2
    rate = 0.5 if of == "offset" else 0.5 * math.exp(-0.5 * 3.5 * 0.05) * 0.05  # 0.05: length of a sample
    assert float(torch.stack(means).mean()) == pytest.approx(rate**2 * shift, rel=0.2)


@pytest.mark.parametrize("of", ["opacity", "offset"])
def test_the_smoothness_in_time_has_a_gradient_at_both_times(of: str) -> None:
    field = Sliding()
    steps = [one_step(field, n=20)._replace(key=make_key(seed)) for seed in range(5)]
    loss = torch.stack([TemporalSmoothness(of=of, max_shift=0.5)(step) for step in steps]).sum()
    loss.backward()
    assert field.rate.grad is not None
    if of == "offset":  # a square of what is linear in the rate
        assert float(field.rate.grad) == pytest.approx(2 * float(loss.detach()) / 0.5, rel=1e-4)
    assert field.rate.grad != 0


def test_what_does_not_change_is_smooth() -> None:
    loss = TemporalSmoothness()(one_step(still := PlainField()))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in still.parameters())


@pytest.mark.parametrize("make", [lambda: TemporalSmoothness(max_shift=0.5), lambda: PerturbationTV(max_offset=0.0)])
def test_times_of_rays_that_do_not_count_change_nothing(make: Any) -> None:
    """NaN, or far outside of the data: the range of the shifts is that of rays that count."""
    values = []
    for time in (3.0, 1e6, float("nan")):
        step = one_step(field := Growing(), n=20)
        rays = step.batch.rays._replace(times=torch.tensor([FIRST, LAST, time]))
        counts = torch.tensor([True, True, False])
        step = step._replace(batch=step.batch._replace(rays=rays, mask=counts), key=make_key(3))
        values.append(loss := make()(step))
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in field.parameters())
    assert values[0] > 0
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_smoothness_in_time_does_not_measure_noise(noise: float) -> None:
    torch.manual_seed(0)
    field = DeformedField(VanillaField(16, 2, None, 16, density_activation="softplus", density_noise=noise))
    with torch.no_grad():
        field.warp.layers[-1].weight.mul_(1000)
    step = one_step(field, n=200)
    steps = [step._replace(key=make_key(seed)) for seed in range(5)]  # some shifts are cut off at the first or last time
    still = torch.stack([TemporalSmoothness(max_shift=1e-6)(step) for step in steps])
    assert float(still.detach().max()) < 1e-12
    moving = torch.stack([TemporalSmoothness(max_shift=1.0)(step) for step in steps]).sum()
    assert moving > 1e-8
    moving.backward()
    assert all(p.grad is not None and p.grad.any() for p in field.warp.parameters())


# -- perturbations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
def test_the_variation_is_the_mean_change_of_features(timed: bool) -> None:
    field = Growing() if timed else Static()
    loss = PerturbationTV(max_offset=0.05, max_shift=0.2, n_points=100_000)(one_step(field, timed=timed))
    e = 0.05 * 2.0  # of a box of unit length 2; |u| of a uniform u in [-e, e] is e / 2 on average
    first = 1.0 * e / 2
    if not timed:
        second = 2.0 * e / 2
    else:
        torch.manual_seed(0)
        u = 2 * e * (2 * torch.rand(10**6) - 1)
        shift = -4 * 0.2 * (LAST - FIRST) * (2 * torch.rand(10**6) - 1).clamp(min=0)  # half of them leave the range
        second = float((u + shift).abs().mean())
    assert float(loss.detach()) == pytest.approx((first + second) / 2, rel=0.02)
    loss.backward()
    assert field.slopes.grad is not None
    assert field.slopes.grad.any()


class Static(Growing):
    """Wants no times."""

    wants = ()

    def density(self, positions: Tensor) -> Tensor:  # type: ignore[override]
        return self.rate + 0 * positions[:, 0]

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:  # type: ignore[override]
        return FieldOutput(self.density(positions), positions.sigmoid())


@pytest.mark.parametrize("moves", [False, True])
def test_the_variation_of_a_hash_grid_reaches_its_table(moves: bool) -> None:
    grid = InstantNGPField(n_levels=2, log2_table_size=8, max_resolution=32)
    loss = PerturbationTV(n_points=100)(one_step(DeformedField(grid) if moves else grid, timed=moves))
    loss.backward()
    assert loss > 0
    grad = grid.position_encoding.table.grad
    assert grad is not None
    assert grad.any()


# -- all of them -------------------------------------------------------------------------------------------------------

LOSSES = [WarpSize, TemporalSmoothness, lambda: TemporalSmoothness("offset"), PerturbationTV]


@pytest.mark.parametrize("make", LOSSES)
def test_they_are_0_where_no_ray_counts_and_draw_by_the_key_alone(make: Any) -> None:
    loss: Loss = make()
    nothing = loss(one_step(Sliding(), counts=(False, False, False)))
    assert nothing == 0
    again = [loss(one_step(Sliding(), n=50)).detach() for _ in range(2)]
    assert again[0] == again[1]
    empty = one_step(Sliding(), n=0)
    empty = empty._replace(
        placement=Placement(PackedSamples(*(t[:0] for t in empty.placement.samples[:3]), *empty.placement.samples[3:]))
    )
    empty = empty._replace(
        output=empty.field.at_samples(empty.batch.rays, empty.placement.samples),  # type: ignore[union-attr]
        render=empty.render._replace(weights=torch.empty(0)),
    )
    loss(empty).backward()


@pytest.mark.parametrize(
    ("loss", "field", "timed", "kind", "message"),
    [
        (WarpSize(), Growing(), True, BadType, "field: the loss 'warp_size' needs one that moves points"),
        (TemporalSmoothness("offset"), Growing(), True, BadType, "'temporal_smoothness' needs one that moves points"),
        (TemporalSmoothness(), Static(), False, BadArgument, "needs rays with times"),
        (PerturbationTV(), PlainField(), False, BadType, r"'perturbation_tv' needs one with encoded\(positions, times\)"),
        (PerturbationTV(), DeformedField(PlainField()), True, BadType, r"needs one with encoded\(positions, times\)"),
    ],
)
def test_a_step_that_lacks_what_they_need_is_refused(
    loss: Loss, field: RadianceField, timed: bool, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        loss(one_step(field, timed=timed))


@pytest.mark.parametrize("make", [TemporalSmoothness, PerturbationTV])
def test_a_step_without_field_or_key_is_refused(make: Any) -> None:
    for lacking in ({"field": None}, {"key": None}):
        with pytest.raises(BadArgument, match=r"step\.field, step\.key"):
            make()(one_step(Sliding())._replace(**lacking))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemporalSmoothness("color"), "of: expected one of opacity, offset, got 'color'"),
        (lambda: TemporalSmoothness(max_shift=0.0), "max_shift: expected a number in"),
        (lambda: PerturbationTV(max_offset=-1.0), "max_offset: expected a number in"),
        (lambda: PerturbationTV(max_shift=1.5), "max_shift: expected a number in"),
        (lambda: PerturbationTV(n_points=0), "n_points: expected an integer from 1"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()
