"""A fixed number of stratified samples on each active ray."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.estimators import Estimator, Hierarchical, Uniform
from lightning_nerf.estimators.stratified import unwarp, warp
from lightning_nerf.ops.random import make_key
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Densities, PackedSamples, Placement, Rays
from tests.ops.harness import DEVICES, rand

BOX = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
SPACINGS = ("uniform", "disparity", "power")


def rays_of(n: int, device: str = "cpu", near: float = 0.25) -> Rays:
    """From a sphere of radius 3 towards its middle and past the box; every fifth is inactive."""
    origins = torch.nn.functional.normalize(rand(n, 3, seed=1, low=-1.0), dim=-1) * 3
    directions = torch.nn.functional.normalize(2 * rand(n, 3, seed=2, low=-1.0) - origins, dim=-1)
    far = torch.where(torch.arange(n) % 5 == 4, 0.0, 6.0)
    return Rays(origins, directions, torch.full((n,), near), far).map(lambda t: t.to(device))


def fog(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
    """Dense around t = 3, elementwise, so that no density depends on how many are asked for at once."""
    middle = 0.5 * (samples.t_starts + samples.t_ends)
    return Densities(3 * torch.exp(-8 * (middle - 3.0).square()))


def hit_by(rays: Rays) -> Tensor:
    """[R] bool, whether a ray is active and enters the box; by slabs, in float64."""
    t = (BOX.aabb[:, None].double() - rays.origins.double()) / rays.directions.double()
    first, last = t.amin(0).amax(-1), t.amax(0).amin(-1)
    return torch.maximum(first, rays.near.double()) < torch.minimum(last, rays.far.double())


MAKES: dict[str, Any] = {
    "uniform": lambda **options: Uniform(5, **options),
    "hierarchical": lambda **options: Hierarchical(4, 3, **options),
}


def lists(placement: Placement) -> list[PackedSamples]:
    return [placement.samples, *(each.samples for each in placement.rounds)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", MAKES)
def test_a_capacity_changes_no_bit_of_the_rays_that_fit(kind: str, spacing: str, keyed: bool, device: str) -> None:
    estimator = MAKES[kind](spacing=spacing).bind(BOX).to(device)
    rays, key = rays_of(60, device), make_key(3, device=device) if keyed else None
    exact = lists(estimator.place(rays, fog, key=key))
    hits = hit_by(rays_of(60))
    assert 20 < int(hits.sum()) < 45
    for samples in exact:
        n = len(samples.t_starts)
        count = n // int(hits.sum())
        assert torch.equal(samples.offsets.diff().cpu(), hits.int() * count)
        assert samples.kept.all()
    for capacity in (0, 6, 7, 100, 101, 1000):
        fits = min(int(hits.sum()), capacity // estimator.fixed_count)
        placed = lists(estimator.place(rays, fog, key=key, capacity=capacity))
        kept = hits.int().cumsum(0) <= fits
        assert len(placed[0].t_starts) == capacity
        for samples, whole in zip(placed, exact, strict=True):
            count = len(whole.t_starts) // int(hits.sum())
            used = fits * count
            assert torch.equal(samples.kept.cpu(), kept)
            assert torch.equal(samples.offsets.diff().cpu(), (hits & kept).int() * count)
            for ours, all_of_them in zip(samples[:3], whole[:3], strict=True):
                assert torch.equal(ours[:used], all_of_them[:used])
                assert not ours[used:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_each_sample_lies_in_its_stratum(count: int, spacing: Any, device: str) -> None:
    rays = rays_of(50, device)
    estimator = Uniform(count, spacing, clip_to_box=False)
    if spacing == "power":  # the others need no box
        estimator = estimator.bind(BOX).to(device)
    samples = estimator.place(rays, key=make_key(1, device=device)).samples
    index = samples.ray_indices.long()
    assert torch.equal(index.cpu(), torch.arange(50)[torch.arange(50) % 5 != 4].repeat_interleave(count))
    edges = torch.stack([samples.t_starts, samples.t_ends]).double().view(2, -1, count)
    near, far = (t.double()[index].view(-1, count)[:, :1] for t in (rays.near, rays.far))

    def share(t: Tensor) -> Tensor:
        move = {"uniform": lambda t: t, "disparity": lambda t: 1 / t, "power": lambda t: (1 + 0.8 * t) ** -1.5}[spacing]
        return (move(t) - move(near)) / (move(far) - move(near))  # type: ignore[no-any-return]

    shares = share(edges)
    assert (edges[0] < edges[1]).all()
    assert torch.equal(edges[0][:, 1:], edges[1][:, :-1])
    assert (edges[0, :, 0] >= near[:, 0]).all()
    assert (edges[1, :, -1] <= far[:, 0]).all()
    # Rounded in float32: some ulp of t, which in 1 / t counts far / near times as much at most.
    slack = 1e-5
    k = torch.arange(count, device=device)
    middles = shares.mean(0)
    if count > 1:
        assert (middles > k / count - slack).all()
        assert (middles < (k + 1) / count + slack).all()
        # One jitter for all samples of a ray: inner intervals have length 1 / count.
        torch.testing.assert_close(
            shares.diff(dim=0)[0, :, 1:-1], torch.full_like(middles[:, 1:-1], 1 / count), rtol=0, atol=slack
        )
        jitter = shares[0, :, 1] * count - 0.5
        assert jitter.std() > 0.2  # each ray has one of its own
    else:
        torch.testing.assert_close(
            shares[:, :, 0].mean(1), torch.tensor([0.0, 1.0], device=device).double(), rtol=0, atol=slack
        )


def test_without_key_the_strata_fill_the_interval() -> None:
    rays = rays_of(10)
    samples = Uniform(8, clip_to_box=False).place(rays).samples
    expected = torch.linspace(0.25, 6.0, 9)
    torch.testing.assert_close(samples.t_starts.view(-1, 8), expected[:-1].expand(8, 8))
    torch.testing.assert_close(samples.t_ends.view(-1, 8), expected[1:].expand(8, 8))


@pytest.mark.parametrize("kind", MAKES)
def test_the_jitter_is_a_function_of_seed_rank_and_step(kind: str) -> None:
    estimator, rays = MAKES[kind]().bind(BOX), rays_of(30)
    keys = {"same": (3, 0, 0), "seed": (4, 0, 0), "rank": (3, 1, 0), "step": (3, 0, 1)}
    first = estimator.place(rays, fog, key=make_key(3)).samples.t_starts
    for name, key in keys.items():
        other = estimator.place(rays, fog, key=make_key(*key)).samples.t_starts
        assert torch.equal(other, first) == (name == "same"), name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", MAKES)
def test_a_rays_samples_do_not_depend_on_other_rays(kind: str, spacing: str) -> None:
    estimator, rays, key = MAKES[kind](spacing=spacing).bind(BOX), rays_of(40), make_key(3)
    fewer = rays._replace(far=torch.where(torch.arange(40) % 3 == 0, 0.0, rays.far))
    whole, part = (estimator.place(some, fog, key=key).samples for some in (rays, fewer))
    remain = torch.isin(whole.ray_indices, part.ray_indices.unique())
    assert 0 < len(part.t_starts) < len(whole.t_starts)
    assert torch.equal(whole.t_starts[remain], part.t_starts)
    assert torch.equal(whole.t_ends[remain], part.t_ends)


def test_estimators_and_rounds_draw_different_jitter() -> None:
    rays, key = rays_of(40), make_key(0)
    uniform = Uniform(4, clip_to_box=False).place(rays, key=key).samples.t_starts
    coarse = Hierarchical(4, 4, clip_to_box=False).place(rays, fog, key=key).rounds[0].samples.t_starts
    assert (uniform.view(-1, 4)[:, 1] - coarse.view(-1, 4)[:, 1]).abs().mean() > 0.1


@pytest.mark.parametrize(
    ("box", "clip_to_box", "clipped"),
    [
        (BOX, True, True),
        (BOX, False, False),
        (BOX._replace(contraction="l2"), True, False),
        (BOX._replace(contraction="linf"), True, False),
        ([-1, -1, -1, 1, 1, 1], True, True),
    ],
)
@pytest.mark.parametrize("kind", MAKES)
def test_intervals_end_at_a_box_without_contraction(kind: str, box: Any, clip_to_box: bool, clipped: bool) -> None:
    estimator = MAKES[kind](clip_to_box=clip_to_box)
    assert estimator.bind(box) is estimator
    rays = rays_of(40)
    loaded = MAKES[kind](clip_to_box=clip_to_box)
    loaded.load_state_dict(estimator.state_dict())
    for each in (estimator, loaded):
        samples = each.place(rays, fog).samples
        active = rays.far > rays.near
        assert torch.equal(samples.offsets.diff() > 0, hit_by(rays) if clipped else active)
        points = rays.origins[samples.ray_indices] + samples.t_starts[:, None] * rays.directions[samples.ray_indices]
        assert (points.abs().amax(-1) < 1 + 1e-5).all() == clipped


@pytest.mark.parametrize("capacity", [None, 0, 50])
@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_rays_without_an_interval_get_no_samples(kind: str, spacing: str, capacity: int | None) -> None:
    """None at all, all of them inactive, all past the box, behind it, with infinite or missing ends."""
    estimator = MAKES[kind](spacing=spacing).bind(BOX)
    some = rays_of(8)
    away = some._replace(directions=-some.directions)
    ends = torch.full((8,), math.nan)
    batches = {
        "none": rays_of(0),
        "inactive": some._replace(far=torch.zeros(8)),
        "away": away,
        "NaN": some._replace(far=ends),
        "empty": some._replace(far=some.near),
    }
    for name, rays in batches.items():
        for samples in lists(estimator.place(rays, fog, key=make_key(0), capacity=capacity)):
            assert not samples.offsets.any(), name
            assert samples.kept.all()
            assert not torch.cat([each.float() for each in samples[:3]]).any()
    endless = away._replace(far=torch.full((8,), math.inf))
    estimator = MAKES[kind](spacing=spacing, clip_to_box=False)
    if spacing == "power":  # the others need no box
        estimator.bind(BOX)
    assert not estimator.place(endless, fog).samples.offsets.any()


@pytest.mark.parametrize("kind", MAKES)
def test_disparity_wants_near_above_zero(kind: str) -> None:
    estimator, rays = MAKES[kind](spacing="disparity", clip_to_box=False), rays_of(10, near=0.0)
    for capacity in (None, 70):
        with pytest.raises(BadArgument, match=r"rays\.near: expected > 0, since spacing='disparity' .*, got 0$"):
            estimator.place(rays, fog, capacity=capacity)
    # A box in front of the camera begins at its surface.
    assert (MAKES[kind](spacing="disparity").bind(BOX).place(rays, fog).samples.t_starts > 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MAKES)
def test_on_a_gpu_disparity_begins_somewhere_where_looking_would_wait(kind: str) -> None:
    estimator, rays = MAKES[kind](spacing="disparity", clip_to_box=False), rays_of(10, "cuda", near=0.0)
    with pytest.raises(BadArgument, match=r"rays\.near: expected > 0"):
        estimator.place(rays, fog)
    t_starts = estimator.place(rays, fog, capacity=70).samples.t_starts
    assert t_starts.isfinite().all()
    assert float(t_starts[0]) >= 6.0 / 1024


@pytest.mark.gpu
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", MAKES)
def test_given_a_capacity_nothing_waits_for_the_gpu(kind: str, spacing: str) -> None:
    estimator = MAKES[kind](spacing=spacing).bind(BOX).cuda()
    rays, key = rays_of(60, "cuda"), make_key(3, device="cuda")
    estimator.place(rays, fog, key=key, capacity=300, march_capacity=500)
    torch.cuda.set_sync_debug_mode("error")
    try:
        estimator.place(rays, fog, key=key, capacity=300, march_capacity=500)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_disparity_reaches_far_beyond_what_float32_sums_hold() -> None:
    rays = rays_of(4)._replace(near=torch.full((4,), 0.01), far=torch.full((4,), 1e8))
    samples = Uniform(64, "disparity", clip_to_box=False).place(rays).samples
    edges = samples.t_ends.view(-1, 64)
    assert (edges.diff(dim=1) > 0).all()
    assert torch.equal(edges[:, -1], torch.full((4,), 1e8))
    # Evenly in 1 / t: the last edge but one is at a 64th of 1 / near.
    torch.testing.assert_close(edges[:, -2], torch.full((4,), 0.64), rtol=1e-5, atol=0)


def check_power(half_side: float, lam: float) -> None:
    """Against Zip-NeRF's equation in Python's numbers, of edges from 0 on, in a box of this half side."""
    box = SceneBox(half_side * torch.tensor([[-0.5, -1.0, -0.5], [0.5, 1.0, 0.5]]))  # the longest side counts
    rays = rays_of(1)._replace(near=torch.zeros(1), far=torch.full((1,), 1e4 * half_side))
    samples = Uniform(32, "power", clip_to_box=False).bind(box).place(rays).samples

    def p(t: float) -> float:
        x, scale = 2 * t / half_side, abs(lam - 1)
        return scale / lam * ((x / scale + 1) ** lam - 1)

    # Sample k is drawn at (k + 1/2) / n of the way and ends midway to the next.
    shares = torch.tensor([p(t) / p(1e4 * half_side) for t in samples.t_ends.tolist()], dtype=torch.float64)
    # Edges are float32; at the far end, where the last but one is, P is flat.
    torch.testing.assert_close(shares, (torch.arange(32) + 1).double() / 32, rtol=2e-6, atol=0)


@pytest.mark.parametrize("half_side", [1.0, 0.01, 300.0])
def test_power_spacing_is_even_in_zipnerfs_power_of_the_distance_in_half_sides(half_side: float) -> None:
    check_power(half_side, -1.5)
    with pytest.raises(AssertionError):
        check_power(half_side, -1.4)


def test_warping_is_undone() -> None:
    t = torch.logspace(-3, 5, 200, dtype=torch.float64)
    s = warp(t, 2.0)
    assert (s.diff() > 0).all()
    # P ends at 5 / 3, so that of t = 1e5 the last 1e-7 are left: eps over that, relative.
    torch.testing.assert_close(unwarp(s, 2.0), t, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Uniform(0), BadArgument, "count: expected an integer >= 1|count: .*1"),
        (lambda: Uniform(spacing="log"), BadArgument, "spacing: expected one of uniform, disparity, power, got 'log'"),  # type: ignore[arg-type]
        (lambda: Uniform(clip_to_box="no"), BadType, "clip_to_box: expected bool, got str"),  # type: ignore[arg-type]
        (lambda: Uniform().bind([1, 1, 1, 0, 0, 0]), BadArgument, "scene_box: expected a minimum corner"),
        (lambda: Uniform().bind([1, 1]), BadArgument, "scene_box: expected corners"),
        (lambda: Uniform().place(rays_of(3)), RuntimeError, "Uniform is not bound to a scene: call bind"),
        (lambda: Uniform().bind(BOX).place(rays_of(3), capacity=-1), BadArgument, "capacity: expected 0 <= capacity"),
        (lambda: Uniform(4, "power", False).place(rays_of(3)), RuntimeError, "Uniform is not bound to a scene: call bind"),
        (lambda: Hierarchical(n_coarse=0), BadArgument, "n_coarse: .*1"),
        (lambda: Hierarchical(n_fine=0), BadArgument, "n_fine: .*1"),
        (lambda: Hierarchical(weight_floor=-1), BadArgument, "weight_floor: .*, got -1"),
        (lambda: Hierarchical(field=3), BadType, "field: expected a RadianceField or None, got int"),  # type: ignore[arg-type]
        (lambda: Hierarchical().place(rays_of(3), fog), RuntimeError, "Hierarchical is not bound to a scene"),
        (lambda: Hierarchical().bind(BOX).place(rays_of(3), fog, march_capacity=-1), BadArgument, "capacity: expected 0"),
        (lambda: Hierarchical().bind(BOX).place(rays_of(3), lambda *_: 3), BadType, "query: expected Densities, got int"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_name(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("kind", MAKES)
def test_it_asks_for_no_grid_update_and_a_fixed_number_of_rays(kind: str) -> None:
    estimator: Estimator = MAKES[kind]().bind(BOX)
    assert not estimator.needs_update
    assert estimator.pruning is None
    ray_indices, t_starts, _ = estimator.sampling(rays_of(20).origins, rays_of(20).directions, stratified=True)
    assert len(ray_indices) == len(t_starts) > 0
