"""Samples narrow down on what the proposals find; their weights have gradients; ready for CUDA graphs and resumed fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.estimators import Proposal, Uniform
from lightning_nerf.fields import ProposalField, RadianceField
from lightning_nerf.ops.random import make_key
from lightning_nerf.ops.ray_aabb import ray_aabb
from lightning_nerf.renderers import FrameRenderer, VolumeRenderer
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, Rays
from tests.estimators.test_uniform import BOX, SPACINGS, hit_by, rays_of
from tests.executors.fits import PlainField
from tests.ops.harness import DEVICES
from tests.renderers import test_frame

COUNTS, N_FINE = (32, 16), 8


class Wall(RadianceField):
    """Opaque where z > 0.3, and a parameter that scales its density."""

    def __init__(self, density: float = 100.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(density))

    def density(self, positions: Tensor) -> Tensor:
        return self.scale * (positions[:, 2] > 0.3)

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        return FieldOutput(self.density(positions), torch.zeros_like(positions))


def bound(device: str = "cpu", fields: list[Any] | None = None, **options: Any) -> Proposal:
    fields = [Wall() for _ in COUNTS] if fields is None else fields
    return Proposal(fields, COUNTS, N_FINE, **options).bind(BOX).to(device)


def ahead(device: str = "cpu") -> Rays:
    """One ray along z, which meets the wall at t = 2.3."""
    rays = Rays(torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1), torch.full((1,), 9.0))
    return rays.map(lambda t: t.to(device))


def clipped(rays: Rays) -> tuple[Tensor, Tensor]:
    """near and far [R] in the box."""
    near, far, _ = ray_aabb(rays.origins, rays.directions, BOX.aabb.to(rays.origins.device)[None], rays.near, rays.far)
    return near[:, 0], far[:, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("keyed", [False, True])
def test_each_round_has_its_number_of_touching_samples(keyed: bool, spacing: str, device: str) -> None:
    rays = rays_of(40, device)
    if spacing == "disparity":
        rays = rays._replace(near=torch.full_like(rays.near, 0.1).where(rays.far > rays.near, rays.near))
    estimator = bound(device, spacing=spacing)
    placement = estimator.place(rays, key=make_key(3, device=device) if keyed else None)
    n_hit = int((placement.samples.offsets.diff() > 0).sum())
    assert 0 < n_hit < 40
    assert estimator.n_rounds == len(placement.rounds) == len(COUNTS)
    assert estimator.fixed_count == N_FINE
    for samples, edges, n in [
        *((each.samples, each.edges, count) for each, count in zip(placement.rounds, COUNTS, strict=True)),
        (placement.samples, placement.edges, N_FINE),
    ]:
        assert edges is not None
        assert edges.shape == (n_hit, n + 1)
        assert (edges.diff(dim=1) >= 0).all()
        assert 0 <= float(edges.min()) < float(edges.max()) <= 1
        assert torch.equal(samples.offsets.diff(), n * (samples.offsets.diff() > 0).int())
        starts, ends = samples.t_starts.view(-1, n), samples.t_ends.view(-1, n)
        assert torch.equal(starts[:, 1:], ends[:, :-1])
        assert not starts.requires_grad
    if spacing == "uniform":
        near, far = (t[placement.samples.offsets.diff() > 0, None] for t in clipped(rays))
        places = torch.lerp(near, far, placement.edges)  # type: ignore[arg-type]
        torch.testing.assert_close(placement.samples.t_starts.view(-1, N_FINE), places[:, :-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_samples_gather_at_the_wall(device: str) -> None:
    placement = bound(device, padding=1e-4).place(ahead(device), key=make_key(0, step=10**6, device=device))
    middles = (placement.samples.t_starts + placement.samples.t_ends) / 2
    assert int(((middles > 2.2) & (middles < 2.45)).sum()) >= N_FINE - 2
    coarse = placement.rounds[0].samples
    assert int(((coarse.t_starts > 2.2) & (coarse.t_ends < 2.45)).sum()) <= 4


def test_annealing_begins_with_even_samples_and_ends_with_the_weights() -> None:
    estimator = bound(padding=1e-4, anneal_steps=100)

    def near_the_wall(step: int) -> int:
        middles = estimator.place(ahead(), key=make_key(0, step=step)).samples.t_starts
        return int(((middles > 2.2) & (middles < 2.45)).sum())

    found = [near_the_wall(step) for step in (0, 3, 100, 1000)]
    assert found[0] <= 2
    assert found == sorted(found)
    assert found[2] == found[3] >= N_FINE - 2
    even = estimator.place(ahead(), key=make_key(0, step=0)).edges
    assert even is not None
    lengths = even.diff(dim=1)[:, 1:-1]  # a coarser round's edges begin and end by less than one of its intervals late
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1 / N_FINE), rtol=0, atol=1 / COUNTS[1] / N_FINE)


def test_the_annealing_is_that_of_the_paper() -> None:
    """b f / ((b - 1) f + 1), read off the CDF of two weights."""
    estimator = bound(padding=0.0, anneal_steps=1000, anneal_slope=10.0)
    for step in (1, 250, 999):
        cdfs = estimator._cdfs(torch.tensor([[0.1, 0.9]]), make_key(0, step=step))
        share = step / 1000
        power = 10 * share / (9 * share + 1)
        assert float(cdfs[0, 1] / (cdfs[0, 2] - cdfs[0, 1])) == pytest.approx((0.1 / 0.9) ** power, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_have_gradients_in_the_fields_and_places_have_none(device: str) -> None:
    estimator = bound(device, fields=[Wall(1.0), Wall(1.0)])
    placement = estimator.place(rays_of(20, device), key=make_key(0, device=device))
    for each, field in zip(placement.rounds, estimator.fields, strict=True):
        (grad,) = torch.autograd.grad(each.weights.sum(), list(field.parameters()), retain_graph=True)
        assert float(grad) > 0
    assert placement.samples.t_starts.grad_fn is None
    others = torch.autograd.grad(
        placement.rounds[1].weights.sum(), list(estimator.fields[0].parameters()), allow_unused=True
    )
    assert others == (None,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("capacity", "march_capacity", "fit"), [(800, 10**6, 100), (80, 10**6, 10), (800, 5 * 32, 5)])
def test_rays_that_do_not_fit_in_one_round_are_dropped_from_all(
    capacity: int, march_capacity: int, fit: int, device: str
) -> None:
    rays = rays_of(40, device)
    placement = bound(device).place(rays, capacity=capacity, march_capacity=march_capacity)
    assert len(placement.samples.t_starts) == capacity
    kept = placement.samples.kept & (placement.samples.offsets.diff() > 0)
    assert int(kept.sum()) == min(fit, int(hit_by(rays_of(40)).sum()))
    for each in placement.rounds:
        assert torch.equal(each.samples.kept & (each.samples.offsets.diff() > 0), kept)
    whole = bound(device).place(rays).samples
    n = int(kept.sum()) * N_FINE
    torch.testing.assert_close(placement.samples.t_starts[:n], whole.t_starts[:n], rtol=0, atol=0)


def test_no_ray_at_all_gives_no_sample() -> None:
    placement = bound().place(rays_of(0))
    assert len(placement.samples.t_starts) == 0
    assert placement.edges is not None
    assert placement.edges.shape == (0, N_FINE + 1)


def test_a_contracted_box_binds_the_fields_to_all_of_space() -> None:
    fields = [ProposalField(n_levels=2, log2_table_size=8, max_resolution=32) for _ in range(2)]
    estimator = Proposal(fields, COUNTS, N_FINE, spacing="disparity")
    estimator.bind(SceneBox(BOX.aabb, "l2"))
    assert all(field.scene_box.contraction == "l2" for field in fields)
    rays = ahead()._replace(near=torch.full((1,), 0.1), far=torch.full((1,), 1e4))
    placement = estimator.place(rays)
    assert float(placement.rounds[0].samples.t_ends[-1]) == pytest.approx(1e4)
    assert (placement.rounds[0].weights[-4:] > 0).any()  # there is a field out there


def test_frames_are_as_dense_samples_see_them() -> None:
    """Proposals that know the field: the frame is that of many even samples."""
    field, (cameras, background) = PlainField(), (test_frame.cameras(), torch.ones(3))
    field.bind(BOX)
    estimator = Proposal([field, field], (128, 64), 48).bind(BOX)
    frame = FrameRenderer(field, estimator, VolumeRenderer()).frame(cameras, 0, background)
    truth = FrameRenderer(field, Uniform(1024).bind(BOX), VolumeRenderer()).frame(cameras, 0, background)
    assert (frame.rgb - truth.rgb).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"counts": (8,)}, BadArgument, "counts: expected one for each of the fields"),
        ({"fields": [], "counts": []}, BadArgument, "counts: expected one for each of the fields, >= 1"),
        ({"fields": [nn.Linear(1, 1), nn.Linear(1, 1)]}, BadType, r"fields\[0\]: expected a RadianceField, got Linear"),
        ({"counts": (8, 0)}, BadArgument, r"counts\[1\]: expected"),
        ({"n_fine": 0}, BadArgument, "n_fine: expected"),
        ({"padding": -1.0}, BadArgument, "padding: expected"),
        ({"anneal_steps": -1}, BadArgument, "anneal_steps: expected"),
        ({"anneal_slope": 0.0}, BadArgument, "anneal_slope: expected"),
        ({"spacing": "cubic"}, BadArgument, "spacing: expected"),
        ({"learn_every": 0}, BadArgument, "learn_every: expected"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Proposal(**{"fields": [Wall(), Wall()], "counts": (8, 8), **arguments})


def test_fields_rest_in_most_steps_once_they_are_warm() -> None:
    estimator = bound(anneal_steps=100, learn_every=5)

    def learns(update: int) -> bool:
        estimator.begin_step(update)
        (weights, _) = (each.weights for each in estimator.place(rays_of(5), key=make_key(0)).rounds)
        assert estimator.variant == weights.requires_grad
        return weights.requires_grad

    assert [learns(update) for update in range(8)] == [True] * 8
    late = [learns(update) for update in range(100, 115)]
    assert late == [update % 5 == 0 for update in range(100, 115)]
    shares = [sum(learns(update) for update in range(begin, begin + 25)) for begin in (0, 30, 60, 100)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 5
