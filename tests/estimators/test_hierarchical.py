"""Fine samples go where the coarse round's weights are; the weights have gradients, and so has a field of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import Hierarchical, Uniform, as_query
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.random import STREAM_COARSE, make_key
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.renderers import FrameRenderer, VolumeRenderer
from lightning_nerf.types import Densities, Evaluated, FieldOutput, PackedSamples, Placement, Rays, Round
from tests.estimators.test_uniform import BOX, SPACINGS, fog, hit_by, rays_of
from tests.executors.fits import PlainField
from tests.ops.harness import DEVICES, rand
from tests.renderers import test_frame

N_COARSE, N_FINE = 16, 40


def placed(device: str = "cpu", key: Tensor | None = None, **options: Any) -> tuple[Placement, Round, Tensor, Tensor]:
    """A placement in fog, its round, and the edges of both rounds' intervals, [K, n + 1]."""
    estimator = Hierarchical(N_COARSE, N_FINE, **options).bind(BOX).to(device)
    placement = estimator.place(rays_of(40, device), fog, key=key)
    (first,) = placement.rounds
    return placement, first, edges_of(first.samples, N_COARSE), edges_of(placement.samples, N_COARSE + N_FINE)


def edges_of(samples: PackedSamples, n: int) -> Tensor:
    starts, ends = samples.t_starts.view(-1, n), samples.t_ends.view(-1, n)
    assert torch.equal(starts[:, 1:], ends[:, :-1])
    return torch.cat([starts, ends[:, -1:]], 1)


def plain_weights(densities: Tensor, samples: PackedSamples) -> Tensor:
    """Weights of packed samples in float64, ray by ray, by autograd."""
    weights: list[Tensor] = []
    for first, last in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        depths = densities[first:last].double() * (samples.t_ends - samples.t_starts)[first:last].double()
        weights.append((1 - torch.exp(-depths)) * torch.exp(-(depths.cumsum(0) - depths)))
    return torch.cat(weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("keyed", [False, True])
def test_both_rounds_edges_are_sorted_into_one_list(keyed: bool, spacing: str, device: str) -> None:
    placement, first, coarse, union = placed(device, make_key(5, device=device) if keyed else None, spacing=spacing)
    count = Hierarchical(N_COARSE, N_FINE).fixed_count
    assert count == N_COARSE + N_FINE
    assert torch.equal(placement.samples.offsets.diff().cpu(), hit_by(rays_of(40)).int() * count)
    assert (union.diff(dim=1) >= 0).all()
    for ray in range(len(union)):
        assert torch.isin(coarse[ray], union[ray]).all()
    uniform = Uniform(N_COARSE, spacing).bind(BOX).to(device).place(rays_of(40, device)).samples  # type: ignore[arg-type]
    if not keyed:
        assert torch.equal(uniform.t_starts, first.samples.t_starts)
    assert not placement.samples.t_starts.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("weight_floor", [1e-5, 0.01, 10.0])
def test_fine_samples_are_as_dense_as_the_weights(weight_floor: float, seed: int | None, spacing: str, device: str) -> None:
    """A coarse interval that holds a share p of all weight holds between p n - 1 and p n + 1 of n fine samples."""
    key = None if seed is None else make_key(seed, device=device)
    _, first, coarse, union = placed(device, key, spacing=spacing, weight_floor=weight_floor)
    weights = first.weights.view(-1, N_COARSE).double() + weight_floor
    expected = N_FINE * weights / weights.sum(1, keepdim=True)
    below = torch.searchsorted(union, coarse, right=True)  # edges up to each coarse one, itself among them
    found = below.diff(dim=1) - 1
    assert torch.equal(found.sum(1), torch.full_like(found[:, 0], N_FINE))
    assert ((found - expected).abs() < 1 + 1e-3).all()
    if weight_floor == 1e-5:
        assert expected.max() > 10
        assert ((found == 0) & (expected < 0.1)).any()


def test_where_nothing_is_found_fine_samples_lie_evenly() -> None:
    estimator = Hierarchical(4, 8).bind(BOX)
    placement = estimator.place(rays_of(20), as_query(lambda positions: torch.zeros(len(positions))))
    union, coarse = edges_of(placement.samples, 12), edges_of(placement.rounds[0].samples, 4)
    assert torch.equal(torch.searchsorted(union, coarse, right=True).diff(dim=1), torch.full((len(union), 4), 3))
    assert not placement.rounds[0].weights.any()


def test_the_rounds_jitter_is_not_the_same() -> None:
    """Each is read off where samples lie: of even weights the CDF is linear in the number of the coarse interval."""
    estimator, key = Hierarchical(4, 8).bind(BOX), make_key(2)
    chosen = estimator.choose(rays_of(60), None, exact=True)
    edges = estimator.strata(chosen, 4, key, STREAM_COARSE)
    fine = estimator.finer(chosen, edges, torch.zeros(4 * len(edges)), key)
    coarse_jitter = 4 * (edges[:, 1] - chosen.near) / (chosen.far - chosen.near) - 0.5
    index = torch.searchsorted(edges, fine, right=True) - 1
    before, after = edges.gather(1, index), edges.gather(1, index + 1)
    fine_jitter = 8 * (index + (fine - before) / (after - before)) / 4 - torch.arange(8)
    torch.testing.assert_close(fine_jitter, fine_jitter[:, :1].expand(-1, 8), rtol=0, atol=1e-4)
    assert 0 <= float(fine_jitter.min()) < 0.2 < 0.8 < float(fine_jitter.max()) < 1
    assert (coarse_jitter - fine_jitter[:, 0]).abs().mean() > 0.1


def test_an_opaque_surface_is_found_to_a_fraction_of_a_coarse_interval() -> None:
    rays = Rays(torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1), torch.full((1,), 9.0))
    wall = as_query(lambda positions: 1e4 * (positions[:, 2] > 0.3))
    samples = Hierarchical(20, 50).bind(BOX).place(rays, wall, key=make_key(0)).samples
    inside = (samples.t_starts >= 2.2) & (samples.t_ends <= 2.4)
    assert int(inside.sum()) >= 48
    assert float((samples.t_ends - samples.t_starts)[inside].max()) < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [None, 400])
def test_weights_and_their_gradient_are_those_of_plain_torch(capacity: int | None, device: str) -> None:
    rays, scale = rays_of(30, device), torch.tensor(2.0, device=device, requires_grad=True)
    asked: list[Tensor] = []

    def query(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        asked.append(scale * fog(rays, samples).values)
        return Densities(asked[-1])

    estimator = Hierarchical(N_COARSE, 8).bind(BOX).to(device)
    (first,) = estimator.place(rays, query, key=make_key(1, device=device), capacity=capacity).rounds
    used = int(first.samples.offsets[-1])
    assert used > 0
    assert not first.weights[used:].any()
    plain = plain_weights(asked[0], first.samples)
    torch.testing.assert_close(first.weights[:used], plain.float(), rtol=1e-5, atol=1e-7)
    toll = rand(len(first.weights), seed=4).to(device)
    (grad,) = torch.autograd.grad((first.weights * toll).sum(), scale, retain_graph=True)
    (expected,) = torch.autograd.grad((plain * toll[:used]).sum(), scale)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


class Watched(PlainField):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        self.asked.append("query")
        return super().query(rays, samples, early_stop_eps)

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        self.asked.append("at_samples")
        return super().at_samples(rays, samples, evaluated)


def refused(*_: Any) -> Densities:
    raise AssertionError("the module's field was asked")


def test_a_coarse_field_of_its_own_answers_in_place_of_the_modules() -> None:
    torch.manual_seed(0)
    field = Watched()
    estimator, rays = Hierarchical(6, 4, field=field).bind(BOX), rays_of(20)
    assert torch.equal(field.aabb, BOX.aabb)
    assert [name for name, _ in estimator.named_parameters()] == [f"field.{name}" for name, _ in field.named_parameters()]
    (first,) = estimator.place(rays, refused, key=make_key(0)).rounds
    assert field.asked == ["at_samples"]
    assert first.output is not None
    torch.testing.assert_close(
        first.weights, plain_weights(first.output.density, first.samples).float(), rtol=1e-5, atol=1e-6
    )
    grads = torch.autograd.grad(first.weights.sum(), list(field.parameters()))
    assert any(bool(grad.any()) for grad in grads)
    with torch.no_grad():  # as for frames: densities suffice
        whole = estimator.place(rays)
        assert field.asked == ["at_samples", "query"]
        assert whole.rounds[0].output is None
        assert len(whole.samples.t_starts) == 10 * int(hit_by(rays).sum())
        assert estimator.place(rays, key=make_key(0)).rounds[0].output is not None
    assert Hierarchical(6, 4, field=PlainField()).bind([0, 0, 0, 1, 1, 1]).field.scene_box.contraction == "none"  # type: ignore[union-attr]


def test_without_a_query_the_coarse_samples_are_placed() -> None:
    placement = Hierarchical(6, 4).bind(BOX).place(rays_of(20))
    assert placement.rounds == ()
    expected = Uniform(6).bind(BOX).place(rays_of(20)).samples
    for ours, theirs in zip(placement.samples, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("capacity", "march_capacity", "kept"), [(100, 35, 5), (49, 1000, 4), (None, 30, 5), (100, 0, 0)])
def test_rays_that_do_not_fit_in_one_round_are_in_none(capacity: int | None, march_capacity: int, kept: int) -> None:
    estimator, rays = Hierarchical(6, 4).bind(BOX), rays_of(60)
    placement = estimator.place(rays, fog, key=make_key(0), capacity=capacity, march_capacity=march_capacity)
    (first,) = placement.rounds
    assert int(placement.samples.offsets[-1]) == 10 * kept
    assert int(first.samples.offsets[-1]) == len(first.samples.t_starts) == 6 * kept
    assert len(placement.samples.t_starts) == (10 * kept if capacity is None else capacity)
    assert torch.equal(first.samples.kept, placement.samples.kept)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("batch", ["none", "inactive", "away"])
def test_rays_without_samples_give_gradients_without_nan(batch: str, own: bool) -> None:
    field, some = PlainField(), rays_of(0 if batch == "none" else 8)
    field.bind(BOX)
    rays = {"none": some, "inactive": some._replace(far=some.near), "away": some._replace(directions=-some.directions)}[
        batch
    ]
    estimator = Hierarchical(6, 4, field=PlainField() if own else None).bind(BOX)
    for capacity in (None, 50):
        placement = estimator.place(rays, field.query, key=make_key(0), capacity=capacity)
        (first,) = placement.rounds
        output = field.at_samples(rays, placement.samples)
        render = VolumeRenderer()(output, placement.samples, background=torch.ones(3))
        (render.rgb.sum() + first.weights.sum()).backward()
        assert torch.equal(render.rgb, torch.ones(len(rays.origins), 3))
    for parameter in [*field.parameters(), *estimator.parameters()]:
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("max_samples", [1, 10, 25, 799, 2**21])
@pytest.mark.parametrize("make", [lambda: Uniform(10), lambda: Hierarchical(6, 4)])
def test_frames_in_chunks_are_equal_to_the_whole(make: Any, max_samples: int) -> None:
    estimator, rays = make().bind(BOX), test_frame.rays_of(100)
    behind = torch.tensor([0.2, 0.5, 1.0])
    rendered = FrameRenderer(test_frame.field(), estimator, VolumeRenderer(), max_samples).rays(rays, behind)
    whole = test_frame.at_once(estimator, rays, behind)
    test_frame.assert_same(rendered, whole)
    assert 0 < float(whole.opacity.mean()) < 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [None, 3000])
def test_samples_that_are_hidden_or_transparent_are_dropped(capacity: int | None, device: str) -> None:
    """A wall behind a veil: the samples left are those of the whole list that pass both thresholds, and hold its light."""
    rays = rays_of(20, device)

    def scene(positions: Tensor) -> Tensor:
        return torch.where(positions[:, 2] > 0.3, 200.0, torch.where(positions[:, 0] > 0, 0.3, 1e-4))

    def placed_by(**thresholds: float) -> PackedSamples:
        estimator = Hierarchical(N_COARSE, N_FINE, **thresholds).bind(BOX).to(device)
        return estimator.place(rays, as_query(scene), capacity=capacity).samples

    whole, left = placed_by(), placed_by(alpha_threshold=1e-3, early_stop_eps=1e-2)
    assert 0 < int(left.offsets[-1]) < int(whole.offsets[-1]) / 2
    values = [scene(sample_points(rays, samples)[0]) for samples in (whole, left)]
    n = int(whole.offsets[-1])
    depths = values[0][:n].double() * (whole.t_ends - whole.t_starts)[:n].double()
    before = torch.cat([d.cumsum(0) - d for d in depths.split(whole.offsets.diff().tolist())])
    seen = (depths >= -math.log1p(-1e-3)) & (before <= -math.log(1e-2))
    assert torch.equal(left.t_starts[: int(left.offsets[-1])], whole.t_starts[:n][seen])
    light = [opacities(value, samples) for value, samples in zip(values, (whole, left), strict=True)]
    assert (light[0] - light[1]).abs().max() < 1e-2 + (N_COARSE + N_FINE) * 1e-3
    if capacity is not None:
        assert len(left.t_starts) == capacity
        assert bool(left.kept.all())


def opacities(values: Tensor, samples: PackedSamples) -> Tensor:
    nothing = values.new_empty(len(values), 0)
    return composite(values, nothing, samples.t_starts, samples.t_ends, samples.offsets).opacity


@pytest.mark.parametrize("density", [1e-6, 0.0])
def test_a_young_field_keeps_its_samples_in_training(density: float) -> None:
    """Its opacities lie below the threshold, all of them: without samples it would never learn."""
    estimator = Hierarchical(N_COARSE, N_FINE, alpha_threshold=0.01).bind(BOX)
    fog = as_query(lambda positions: torch.full((len(positions),), density))
    in_training, later = (int(estimator.place(rays_of(20), fog, key=k).samples.offsets[-1]) for k in (make_key(0), None))
    everything = int(hit_by(rays_of(20)).sum()) * (N_COARSE + N_FINE)
    assert 0.8 * everything < in_training <= everything  # the shortest intervals, which hold next to nothing, may go
    assert later == 0


def test_features_follow_the_samples_that_are_left() -> None:
    """What a query leaves of each sample is found again by the index of the sample that it was."""
    kept: list[Tensor] = []

    def query(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        kept.append(samples.t_starts)
        return Densities(20.0 * (sample_points(rays, samples)[0][:, 2] > 0), samples.t_starts[:, None])

    estimator = Hierarchical(N_COARSE, N_FINE, early_stop_eps=0.01, alpha_threshold=0.01).bind(BOX)
    placement = estimator.place(rays_of(20), query, key=make_key(0))
    assert placement.evaluated is not None
    features, sources = placement.evaluated
    assert 0 < len(sources) < len(features)
    assert torch.equal(features[sources.long(), 0], placement.samples.t_starts)
    assert len(placement.rounds) == 1


@pytest.mark.parametrize("option", [{"alpha_threshold": 1.0}, {"early_stop_eps": -0.1}, {"early_stop_eps": float("nan")}])
def test_thresholds_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(BadArgument, match=f"{next(iter(option))}: expected"):
        Hierarchical(4, 8, **option)


@pytest.mark.parametrize("rest", [0.0, float("nan"), float("inf")])
def test_the_unused_tail_has_no_say_in_what_is_dropped(rest: float) -> None:
    """Nor has a single density that is not a number: half of the samples of all rays are left as they were."""

    def query(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        used = torch.arange(len(samples.t_starts)) < samples.offsets[-1]
        values = torch.where(used, 2.0 * (sample_points(rays, samples)[0][:, 2] > 0), rest)
        values[0] = rest
        return Densities(values)

    estimator = Hierarchical(N_COARSE, N_FINE, alpha_threshold=0.01).bind(BOX)
    everything = int(hit_by(rays_of(20)).sum()) * (N_COARSE + N_FINE)
    left = estimator.place(rays_of(20), query, key=make_key(0), capacity=everything + 100).samples
    assert 0.2 * everything < int(left.offsets[-1]) < 0.8 * everything
    assert bool(left.kept.all())
