from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc import PropNetEstimator, RayIntervals
from lightning_nerf.nerfacc.estimators.prop_net import (
    _lossfun_outer,
    _pdf_loss,
    _transform_stot,
    get_proposal_requires_grad_fn,
)
from tests.ops.harness import DEVICES, rand

FAR = 6.0


def bump(center: float = 3.0, width: float = 0.3, height: float = 20.0) -> Callable[[Tensor, Tensor], Tensor]:
    def sigmas(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return height * torch.exp(-((((t_starts + t_ends) / 2 - center) / width) ** 2))

    return sigmas


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling_type", ["uniform", "lindisp"])
@pytest.mark.parametrize("stratified", [False, True])
def test_samples_gather_where_the_networks_find_something(device: str, sampling_type: str, stratified: bool) -> None:
    estimator = PropNetEstimator().to(device)
    shapes = []

    def coarse(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        shapes.append(t_starts.shape)
        return bump()(t_starts, t_ends)

    t_starts, t_ends = estimator.sampling(
        [coarse, coarse],
        [128, 64],
        32,
        50,
        1.0,
        FAR,
        sampling_type,
        stratified=stratified,  # type: ignore[arg-type]
    )
    assert shapes == [(50, 128), (50, 64)]
    assert t_starts.shape == t_ends.shape == (50, 32)
    assert t_starts.device.type == device
    torch.testing.assert_close(t_starts[:, 1:], t_ends[:, :-1], rtol=0, atol=0)
    assert (t_starts < t_ends).all()
    assert (t_starts >= 1.0 - 1e-5).all()
    assert (t_ends <= FAR + 1e-4).all()
    middle = (t_starts + t_ends) / 2
    # The bump is opaque (its integral is 10.6), and light gets about to where a tenth of that lies in front: 2.5 to 3.
    assert ((middle > 2.2) & (middle < 3.4)).float().mean() > 0.8
    assert (t_starts.std(0).amax() > 1e-4) == stratified
    assert not estimator.prop_cache


@pytest.mark.parametrize("device", DEVICES)
def test_without_networks_intervals_are_equal(device: str) -> None:
    for sampling_type, transform in (("uniform", lambda t: t), ("lindisp", lambda t: 1 / t)):
        t_starts, t_ends = PropNetEstimator().to(device).sampling([], [], 8, 3, 1.0, FAR, sampling_type)  # type: ignore[arg-type]
        edges = transform(torch.cat([t_starts, t_ends[:, -1:]], -1))
        even = torch.linspace(float(edges[0, 0]), float(edges[0, -1]), 9, device=device).expand(3, 9)
        torch.testing.assert_close(edges, even, rtol=1e-5, atol=1e-6)


def piecewise(seed: int, n: int, rays: int = 4) -> tuple[Tensor, Tensor]:
    """Edges [R, n + 1] from 0 to 1, and a distribution function at them."""
    edges = torch.cat([torch.zeros(rays, 1), rand(rays, n - 1, seed=seed).sort(-1).values, torch.ones(rays, 1)], -1)
    return edges, rand(rays, n + 1, seed=seed + 1).sort(-1).values


def test_the_loss_is_what_touching_intervals_do_not_cover() -> None:
    edges, cdfs = piecewise(0, 12)
    prop_edges, prop_cdfs = piecewise(2, 9)
    prop_cdfs = prop_cdfs * 0.4
    loss = _pdf_loss(RayIntervals(vals=edges), cdfs, RayIntervals(vals=prop_edges), prop_cdfs)
    assert loss.shape == (4, 12)
    positive = 0
    for ray in range(4):
        for i in range(12):
            start, end = edges[ray, i], edges[ray, i + 1]
            w = float(cdfs[ray, i + 1] - cdfs[ray, i])
            touched = [
                float(prop_cdfs[ray, j + 1] - prop_cdfs[ray, j])
                for j in range(9)
                if prop_edges[ray, j] < end and prop_edges[ray, j + 1] > start
            ]
            excess = max(w - sum(touched), 0)
            positive += excess > 0
            # Sums of ten float32 numbers below 1, differences of them squared.
            assert float(loss[ray, i]) == pytest.approx(excess**2 / (w + 1e-7), rel=1e-4, abs=1e-6)
    assert 5 < positive < 48
    outer = _lossfun_outer(edges, cdfs.diff(), prop_edges, prop_cdfs.diff())
    torch.testing.assert_close(outer, loss, rtol=1e-4, atol=1e-5)


def test_the_loss_of_flattened_intervals_is_the_same() -> None:
    edges, cdfs = piecewise(0, 12)
    prop_edges, prop_cdfs = piecewise(2, 9)
    rows = _pdf_loss(RayIntervals(vals=edges), cdfs, RayIntervals(vals=prop_edges), prop_cdfs)

    def flat(edges: Tensor) -> RayIntervals:
        rays, n = edges.shape
        left = torch.ones(rays, n, dtype=torch.bool)
        left[:, -1] = False
        info = torch.stack([torch.arange(rays) * n, torch.full((rays,), n)], -1)
        index = torch.arange(rays).repeat_interleave(n)
        return RayIntervals(edges.flatten(), info, index, left.flatten(), left.flip(-1).flatten())

    packed = _pdf_loss(flat(edges), cdfs.flatten(), flat(prop_edges), prop_cdfs.flatten())
    torch.testing.assert_close(packed.view(4, 12), rows, rtol=0, atol=0)
    with pytest.raises(ValueError, match="is_left"):
        _pdf_loss(
            RayIntervals(edges.flatten(), flat(edges).packed_info), cdfs.flatten(), flat(prop_edges), prop_cdfs.flatten()
        )


@pytest.mark.parametrize("device", DEVICES)
def test_networks_learn_where_the_field_is(device: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Parameter(torch.zeros(32, device=device))  # log density in each of 32 bins
    optimizer = torch.optim.Adam([net], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    estimator = PropNetEstimator(optimizer, scheduler).to(device)

    def sigma_fn(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        place = ((t_starts + t_ends) / 2 / FAR * 32).long().clamp(0, 31)
        return net[place].exp()

    losses, shares = [], []
    for step in range(200):
        learns = step % 2 == 0
        t_starts, t_ends = estimator.sampling(
            [sigma_fn], [64], 32, 64, 0.01, FAR, "uniform", stratified=True, requires_grad=learns
        )
        assert not t_starts.requires_grad
        depth = bump()(t_starts, t_ends) * (t_ends - t_starts)
        trans = torch.exp(-(depth.cumsum(-1) - depth)).requires_grad_()
        loss = estimator.update_every_n_steps(trans, requires_grad=learns, loss_scaler=1.0)
        assert trans.grad is None
        assert not estimator.prop_cache
        assert (loss > 0) or not learns
        losses.append(loss)
        middle = (t_starts + t_ends) / 2
        shares.append(float(((middle > 2.2) & (middle < 3.4)).float().mean()))
    assert scheduler.last_epoch == 200
    assert sum(losses[-20:]) < 0.1 * sum(losses[:20])
    assert shares[0] < 0.3
    assert shares[-1] > 0.7


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_scales_and_forgets(device: str) -> None:
    scale = torch.tensor(1.0, device=device, requires_grad=True)
    estimator = PropNetEstimator().to(device)

    def sigma_fn(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return scale * bump(center=4.0, height=0.5)(t_starts, t_ends)

    def loss(loss_scaler: float) -> Tensor:
        t_starts, t_ends = estimator.sampling([sigma_fn] * 2, [32, 32], 16, 5, 0.1, FAR, "uniform", requires_grad=True)
        assert len(estimator.prop_cache) == 3
        depth = bump()(t_starts, t_ends) * (t_ends - t_starts)
        return estimator.compute_loss(torch.exp(-(depth.cumsum(-1) - depth)), loss_scaler)

    first = loss(1.0)
    assert first > 0
    (grad,) = torch.autograd.grad(first, scale)
    assert grad != 0
    torch.testing.assert_close(loss(3.0), 3 * first)
    assert estimator.compute_loss(torch.ones(5, 16, device=device)) == 0
    # Sampling twice before the loss: the first is forgotten.
    estimator.sampling([sigma_fn], [8], 4, 7, 0.1, FAR, "uniform", requires_grad=True)
    torch.testing.assert_close(loss(1.0), first)


@pytest.mark.parametrize("device", DEVICES)
def test_no_rays(device: str) -> None:
    scale = torch.tensor(1.0, device=device, requires_grad=True)
    estimator = PropNetEstimator(torch.optim.SGD([scale], lr=1.0)).to(device)
    t_starts, t_ends = estimator.sampling([lambda a, b: scale * (a + b)], [8], 4, 0, 0.1, FAR, requires_grad=True)
    assert t_starts.shape == t_ends.shape == (0, 4)
    assert estimator.update_every_n_steps(torch.ones(0, 4, device=device), requires_grad=True) == 0.0
    assert scale.item() == 1.0


def test_gradients_are_wanted_ever_less_often() -> None:
    wanted = get_proposal_requires_grad_fn(target=5.0, num_steps=1000)
    steps = [step for step in range(3000) if wanted(step)]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert gaps[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] == 6
    assert get_proposal_requires_grad_fn(target=0.0)(0) is False


def test_distances_are_linear_in_t_or_in_its_inverse() -> None:
    s = torch.linspace(0, 1, 5)
    torch.testing.assert_close(_transform_stot("uniform", s, 2.0, 6.0), torch.tensor([2.0, 3, 4, 5, 6]))
    torch.testing.assert_close(1 / _transform_stot("lindisp", s, 2.0, 6.0), torch.linspace(1 / 2, 1 / 6, 5))
    far = _transform_stot("lindisp", s, torch.tensor(2.0), torch.tensor(math.inf))
    torch.testing.assert_close(far, torch.tensor([2.0, 8 / 3, 4, 8, math.inf]))
    for limits in ((0.0, 6.0), (-1.0, 6.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="plane"):
            _transform_stot("lindisp", s, *limits)
    with pytest.raises(ValueError, match="sampling_type"):
        _transform_stot("cubic", s, 1.0, 2.0)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    estimator = PropNetEstimator()
    with pytest.raises(ValueError, match="prop_samples"):
        estimator.sampling([bump()], [8, 8], 4, 2, 1.0, 2.0)
    with pytest.raises(ValueError, match="prop_sigma_fns"):
        estimator.sampling([lambda a, b: a[:, 1:]], [8], 4, 2, 1.0, 2.0)
    with pytest.raises(RuntimeError, match="optimizer"):
        estimator.update_every_n_steps(torch.ones(2, 4), requires_grad=True)
    with pytest.raises(RuntimeError, match="sampling"):
        PropNetEstimator(torch.optim.SGD([torch.zeros(1)], lr=1.0)).update_every_n_steps(torch.ones(2, 4), True)
