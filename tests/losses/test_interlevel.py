"""Proposals are drawn over all weight of the last round; a spread ray costs more than a thin one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf import Distortion, Interlevel
from lightning_nerf.checks import BadArgument
from lightning_nerf.ops.interlevel import blurred, outer_bound, resampled
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, RayBatch, Rays, Render, Round, Step
from tests.ops.harness import DEVICES, rand

K, M, N = 5, 7, 4


def histogram(k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rising edges [k, n + 1] within [0, 1] and weights [k, n] of sum < 1."""
    edges = rand(k, n + 1, seed=seed).sort(1).values
    return edges, rand(k, n, seed=seed + 50) / n


def samples_of(edges: Tensor, tail: int = 0) -> PackedSamples:
    """Row k is ray 2 k of 2 K rays; odd rays have no samples."""
    k, n = len(edges), edges.shape[1] - 1
    rays = torch.arange(0, 2 * k, 2, dtype=torch.int32, device=edges.device)
    counts = torch.zeros(2 * k, dtype=torch.int32, device=edges.device)
    counts[::2] = n
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0).int()])
    starts, ends, owners = edges[:, :-1].flatten(), edges[:, 1:].flatten(), rays.repeat_interleave(n)
    starts, ends, owners = (torch.nn.functional.pad(each, (0, tail)) for each in (starts, ends, owners))
    return PackedSamples(starts, ends, owners, offsets, torch.ones(2 * k, dtype=torch.bool, device=edges.device))


Histogram = tuple[Tensor, Tensor]


def step_of(fine: Histogram, coarse: list[Histogram], mask: Tensor | None = None, tail: int = 0) -> Step:
    device, n_rays = fine[0].device, 2 * len(fine[0])
    three, one = torch.zeros(n_rays, 3, device=device), torch.zeros(n_rays, device=device)
    rounds = tuple(Round(samples_of(e), w.flatten(), None, e) for e, w in coarse)
    samples = samples_of(fine[0], tail)
    weights = torch.nn.functional.pad(fine[1].flatten(), (0, tail), value=float("nan"))
    render = Render(three, one, one, one.int(), weights=weights)
    output = FieldOutput(weights, torch.zeros(len(weights), 3, device=device))
    batch = RayBatch(Rays(three, three, one, one + 1), three, mask=mask)
    return Step(batch, torch.zeros(3, device=device), Placement(samples, rounds, edges=fine[0]), output, render, {})


def bound_by_loops(edges: Tensor, coarse_edges: Tensor, coarse: Tensor) -> Tensor:
    bound = torch.zeros(len(edges), edges.shape[1] - 1)
    for k in range(len(edges)):
        for i in range(edges.shape[1] - 1):
            for j in range(coarse.shape[1]):
                if coarse_edges[k, j] < edges[k, i + 1] and coarse_edges[k, j + 1] > edges[k, i]:
                    bound[k, i] += coarse[k, j]
    return bound


def test_the_bound_is_the_sum_over_overlapping_intervals() -> None:
    (edges, _), (coarse_edges, coarse) = histogram(K, N, 0), histogram(K, M, 1)
    found = outer_bound(edges, coarse_edges, coarse)
    torch.testing.assert_close(found, bound_by_loops(edges, coarse_edges, coarse), rtol=1e-6, atol=1e-7)
    same = outer_bound(coarse_edges, coarse_edges, coarse)  # an interval overlaps itself alone, not those that it touches
    torch.testing.assert_close(same, coarse, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tail", [0, 9])
def test_the_loss_is_that_of_the_paper(tail: int, device: str) -> None:
    fine, coarse = histogram(K, N, 0), [histogram(K, M, 1), histogram(K, 3, 2)]
    mask = torch.tensor([True, True, False, True, True, True, True, False, True, True])
    expected = 0.0
    for coarse_edges, weights in coarse:
        excess = (fine[1] - bound_by_loops(fine[0], coarse_edges, weights)).clamp(min=0)
        each = (excess**2 / (fine[1] + 1e-7)).sum(1)
        expected += float(each[mask[::2]].sum()) / int(mask.sum())
    assert expected > 1e-3
    place = tuple(t.to(device) for t in fine), [tuple(t.to(device) for t in each) for each in coarse]
    found = Interlevel()(step_of(*place, mask=mask.to(device), tail=tail))  # type: ignore[arg-type]
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_only_proposals_learn_by_it() -> None:
    fine, (edges, weights) = histogram(K, N, 0), histogram(K, M, 1)
    fine[1].requires_grad_()
    weights.requires_grad_()
    loss = Interlevel()(step_of(fine, [(edges, weights)]))
    of_weights, of_fine = torch.autograd.grad(loss, [weights, fine[1]], allow_unused=True)
    assert of_fine is None
    assert (of_weights <= 0).all()  # more weight in proposals never costs
    assert of_weights.min() < 0


def test_a_proposal_that_covers_all_costs_nothing() -> None:
    fine = histogram(K, N, 0)
    assert Interlevel()(step_of(fine, [fine])) < 1e-12  # differences of sums are rounded
    wide = torch.tensor([[0.0, 1.0]]).expand(K, 2).contiguous()
    assert Interlevel()(step_of(fine, [(wide, fine[1].sum(1, keepdim=True) + 1e-3)])) == 0


def test_a_blurred_histogram_is_its_convolution_with_a_box() -> None:
    edges, weights = histogram(K, N, 3)
    radius = 0.05
    knots, density = blurred(edges, weights, radius)
    at = torch.linspace(-0.2, 1.2, 4001, dtype=torch.float64)
    steps = torch.zeros(K, len(at), dtype=torch.float64)
    for k in range(K):
        for i in range(N):
            low, high = float(edges[k, i]), float(edges[k, i + 1])
            height = float(weights[k, i]) / (high - low)
            overlap = ((at + radius).clamp(max=high) - (at - radius).clamp(min=low)).clamp(min=0)
            steps[k] += height * overlap / (2 * radius)
        found = torch.from_numpy(np.interp(at, knots[k], density[k], left=0, right=0))
        torch.testing.assert_close(found, steps[k], rtol=1e-4, atol=1e-4 * float(steps[k].max()))
    total = resampled(knots, density, torch.tensor([[-1.0, 2.0]]).expand(K, 2).contiguous())
    torch.testing.assert_close(total[:, 0], weights.sum(1), rtol=1e-5, atol=1e-7)


def test_resampling_adds_up() -> None:
    knots, density = blurred(*histogram(K, N, 3), 0.02)
    cuts = torch.cat([knots[:, :1], rand(K, 9, seed=4).double().sort(1).values, knots[:, -1:]], 1).sort(1).values.float()
    parts, whole = resampled(knots, density, cuts), resampled(knots, density, cuts[:, [0, -1]])
    torch.testing.assert_close(parts.sum(1), whole[:, 0], rtol=1e-5, atol=1e-6)
    assert (parts >= -1e-7).all()


def test_the_spline_feels_how_far_a_proposal_is_away() -> None:
    """The histogram's loss is flat where a thin proposal misses thin light; the spline's falls as it comes nearer."""
    light = torch.tensor([[0.50, 0.51]]), torch.tensor([[1.0]])

    def at(place: float, width: float | None) -> float:
        proposal = torch.tensor([[0.0, place, place + 0.01, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        return float(Interlevel(width)(step_of(light, [proposal])))

    flat = [at(place, None) for place in (0.40, 0.45, 0.48)]
    assert max(flat) - min(flat) < 1e-6
    falling = [at(place, 0.05) for place in (0.40, 0.45, 0.48, 0.50)]
    assert falling == sorted(falling, reverse=True)


def test_zero_lengths_and_no_rays_are_no_trouble() -> None:
    edges = torch.full((K, N + 1), 0.5)
    weights = torch.full((K, N), 0.1, requires_grad=True)
    for width in (None, 0.03):
        loss = Interlevel(width)(step_of((edges, weights.detach()), [(edges, weights)]))
        (grad,) = torch.autograd.grad(loss, weights)
        assert loss.isfinite()
        assert grad.isfinite().all()
        empty = torch.empty(0, N + 1), torch.empty(0, N)
        assert Interlevel(width)(step_of(empty, [empty])) == 0
        assert Distortion()(step_of(empty, [empty])) == 0


def test_estimators_and_numbers_that_do_not_fit_are_named() -> None:
    fine = histogram(K, N, 0)
    with pytest.raises(BadArgument, match="'interlevel' needs rounds of equally many samples"):
        Interlevel()(step_of(fine, []))
    with pytest.raises(BadArgument, match="pulse_width: expected one number, or one of each of 1 rounds, got 2"):
        Interlevel([0.03, 0.003])(step_of(fine, [fine]))
    with pytest.raises(BadArgument, match=r"pulse_width\[1\]: expected"):
        Interlevel([0.03, -1.0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tail", [0, 9])
def test_distortion_measures_in_the_estimators_spacing(tail: int, device: str) -> None:
    edges, weights = histogram(K, N, 0)
    mask = torch.tensor([True, False] * K)
    mask[4] = False
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    pairs = weights[:, :, None] * weights[:, None] * (middle[:, :, None] - middle[:, None]).abs()
    each = pairs.sum((1, 2)) + (weights**2 * edges.diff(dim=1)).sum(1) / 3
    expected = float(each[mask[::2]].sum()) / int(mask.sum())
    step = step_of((edges.to(device), weights.to(device)), [], mask=mask.to(device), tail=tail)
    assert float(Distortion()(step)) == pytest.approx(expected, rel=1e-4)
    samples, weights = step.placement.samples, step.render.weights
    assert weights is not None
    longer = samples._replace(t_starts=7 * samples.t_starts, t_ends=7 * samples.t_ends)
    packed = step._replace(placement=Placement(longer), render=step.render._replace(weights=weights.nan_to_num(0.3)))
    assert float(Distortion()(packed)) == pytest.approx(7 * expected, rel=1e-4)  # no field says how large the scene is
