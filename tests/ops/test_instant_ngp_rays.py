"""The field's variants along rays, against references that run op by op."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import instant_ngp
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.instant_ngp import field, ray_densities, render
from lightning_nerf.ops.sample_points import CONTRACTIONS_OF_POINTS, sample_points
from lightning_nerf.ops.visibility import prune, prune_from
from lightning_nerf.scene_box import CONTRACTIONS
from lightning_nerf.types import Evaluated, PackedSamples, Rays
from tests.ops.harness import DEVICES, poison_tail, ragged_offsets, rand, to
from tests.ops.ngp import HALVES, LAYOUTS, OPS, ROUNDOFF, distance, net, normal


class Scene(NamedTuple):
    """Rays through a dense fog, their samples followed by a poisoned tail."""

    rays: Rays
    samples: PackedSamples
    to_unit: Tensor
    owner: Tensor  # [N] ray of each sample, without the tail


BIAS = 3.0  # most rays with many samples end in the fog


def scene(device: str, n_rays: int = 120, tail: int = 50) -> Scene:
    counts = [0 if i % 3 == 1 else (i * 37) % 61 for i in range(n_rays)]
    offsets = ragged_offsets(counts)
    n = int(offsets[-1])
    owner = torch.arange(n_rays).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    rank = torch.arange(n) - offsets[:-1].long()[owner]
    t_starts = 0.02 * rank
    origins = rand(n_rays, 3, seed=1, low=-0.5, high=0.5)
    directions = torch.nn.functional.normalize(normal(n_rays, 3, seed=2), dim=-1) * rand(
        n_rays, 1, seed=3, low=0.5, high=1.5
    )
    rays = Rays(origins, directions, torch.zeros(n_rays), torch.ones(n_rays))
    samples = PackedSamples(
        poison_tail(t_starts, n, extra=tail),
        poison_tail(t_starts + 0.02, n, extra=tail),
        torch.cat([owner.int(), torch.zeros(tail, dtype=torch.int32)]),
        offsets,
        torch.ones(n_rays, dtype=torch.bool),
    )
    to_unit = torch.tensor([[0.5, 0.5, 0.4], [0.5, 0.5, 0.45]])
    return Scene(Rays(*to(device, rays)), PackedSamples(*to(device, samples)), to_unit.to(device), owner.to(device))


def along(s: Scene) -> tuple[Tensor, ...]:
    return s.rays.origins, s.rays.directions, s.samples.t_starts, s.samples.t_ends, s.samples.offsets


def depth_in_front(s: Scene, densities: Tensor) -> Tensor:
    """Optical depth in front of each sample, without the tail."""
    n = len(s.owner)
    depth = (densities[:n] * (s.samples.t_ends - s.samples.t_starts)[:n]).double()
    sums = torch.cat([depth.new_zeros(1), depth.cumsum(0)])
    return sums[:-1] - sums[s.samples.offsets.long()[s.owner]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("contraction", CONTRACTIONS_OF_POINTS)
def test_ray_densities(device: str, dtype: torch.dtype, layout: tuple[int, int], contraction: str) -> None:
    p, s = net(layout, device), scene(device)
    n = len(s.owner)
    rest = (p.working, p.levels, p.weights.density1, p.weights.density2, s.to_unit)
    expected, encoded = instant_ngp.ray_densities_reference(
        *along(s), *rest, BIAS, 0.0, dtype == torch.bfloat16, True, CONTRACTIONS.index(contraction)
    )
    in_front = depth_in_front(s, expected)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": dtype, "contraction": contraction}
    for eps in (0.0, 1e-4):
        densities, kept = ray_densities(s.rays, s.samples, *rest, early_stop_eps=eps, keep_encoded=True, **options)
        assert kept is not None
        assert kept.dtype == dtype
        assert not densities[n:].any()
        evaluated = densities[:n] > 0
        # Positions differ in their last bits, which tips more roundings: one in a hundred.
        assert distance(densities[:n][evaluated], expected[:n][evaluated]) <= ROUNDOFF[dtype] / 8
        assert distance(kept[:n][evaluated], encoded[:n][evaluated]) <= ROUNDOFF[dtype]
        # Left out: what lies outside of the box, and what is hidden.
        limit = -math.log(eps) if eps > 0 else math.inf
        assert (evaluated | (expected[:n] == 0) | (in_front > limit)).all()
        if eps > 0 and device == "cuda":
            assert (densities[:n][in_front > limit] == 0).any()
        # An optical depth within rounding of the threshold may fall on either side.
        ours, theirs = (prune(x, s.samples, early_stop_eps=1e-4, alpha_thre=0.0) for x in (densities, expected))
        assert (ours.offsets.diff() != theirs.offsets.diff()).sum() <= 2
        assert 0 < len(ours.t_starts) < 0.8 * n
        again, nothing = ray_densities(s.rays, s.samples, *rest, early_stop_eps=eps, **options)
        assert nothing is None
        seen = in_front <= limit  # how much of what is hidden gets evaluated depends on the warps' timing
        assert torch.equal(again[:n][seen], densities[:n][seen])


@pytest.mark.parametrize("device", DEVICES)
def test_field_takes_the_encodings_that_ray_densities_kept(device: str) -> None:
    p, s = net((8, 4), device), scene(device)
    rest = (p.working, p.levels, p.weights.density1, p.weights.density2, s.to_unit)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": torch.bfloat16}
    densities, kept = ray_densities(s.rays, s.samples, *rest, early_stop_eps=1e-4, keep_encoded=True, **options)
    assert kept is not None
    survivors, sources = prune_from(densities, s.samples, capacity=len(s.owner))
    n = int(survivors.offsets[-1])
    positions, directions, _ = sample_points(s.rays, survivors)
    unit = s.to_unit[1] + positions * s.to_unit[0]
    kept = kept.nan_to_num()  # of the tail, whose source is row 0, nothing matters
    direct = field(unit, directions, *p, **options)
    cached = field(unit, directions, *p, evaluated=Evaluated(kept, sources), **options)
    for a, b in zip(cached, direct, strict=True):
        assert distance(a[:n], b[:n]) <= ROUNDOFF[torch.bfloat16]  # positions differ in their last bit, and so encodings


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("alpha_thre", "contraction"), [(0.0, "none"), (0.3, "none"), (0.0, "l2"), (0.3, "linf")])
def test_render(device: str, dtype: torch.dtype, layout: tuple[int, int], alpha_thre: float, contraction: str) -> None:
    p, s = net(layout, device), scene(device)
    threshold = torch.tensor(alpha_thre, device=device)
    arguments = (p.working, p.levels, p.weights, s.to_unit)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": dtype}
    mapped: dict[str, Any] = {**options, "contraction": contraction}
    rgb, opacity, depth, count = render(s.rays, s.samples, *arguments, early_stop_eps=1e-4, alpha_thre=threshold, **mapped)
    index = CONTRACTIONS.index(contraction)
    expected = instant_ngp.render_reference(
        *along(s), p.working, p.levels, *p.weights, s.to_unit, BIAS, 1e-4, threshold, dtype == torch.bfloat16, index
    )

    survivors = prune(
        ray_densities(s.rays, s.samples, p.working, p.levels, *p.weights[:2], s.to_unit, early_stop_eps=0.0, **mapped)[0],
        s.samples,
        early_stop_eps=1e-4,
        alpha_thre=threshold,
    )
    unit, directions, _ = sample_points(s.rays, survivors, to_unit=s.to_unit, contraction=contraction)
    density, colors = field(unit, directions, *p, **options)
    parts = composite(density, colors, survivors.t_starts, survivors.t_ends, survivors.offsets)
    for theirs in (expected, (parts.channels, parts.opacity, parts.depth, survivors.offsets.diff())):
        for a, e in zip((rgb, opacity, depth), theirs[:3], strict=True):
            assert distance(a, e) <= ROUNDOFF[dtype]
        assert (count != theirs[3]).sum() <= 2  # within rounding of a threshold
    assert 0 < int(count.sum()) < (0.8 if alpha_thre == 0 else 0.5) * len(s.owner)
    empty = s.samples.offsets.diff() == 0
    assert empty.any()
    for o in (rgb, opacity, depth, count):
        assert not o[empty].any()
    assert rgb.isfinite().all()
    assert opacity.max() <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_no_rays_and_no_samples(device: str) -> None:
    p = net((16, 2), device)
    threshold = torch.zeros((), device=device)
    options: dict[str, Any] = {"density_bias": BIAS, "early_stop_eps": 1e-4, "dtype": torch.float16}
    for n_rays, n in ((0, 0), (3, 0), (3, 9)):  # the last: a tail alone
        rays = Rays(*(rand(n_rays, 3, seed=0).to(device) for _ in range(2)), *(torch.zeros(n_rays, device=device),) * 2)
        t = torch.full((n,), float("nan"), device=device)
        index = torch.zeros(max(n, n_rays + 1), dtype=torch.int32, device=device)
        kept = torch.ones(n_rays, dtype=torch.bool, device=device)
        s = PackedSamples(t, t, index[:n], index[: n_rays + 1], kept)
        to_unit = torch.ones(2, 3, device=device)
        densities, encoded = ray_densities(
            rays, s, p.working, p.levels, *p.weights[:2], to_unit, keep_encoded=True, **options
        )
        assert encoded is not None
        assert densities.shape == (n,)
        assert encoded.shape == (n, 32)
        assert not densities.any()
        outputs = render(rays, s, p.working, p.levels, p.weights, to_unit, alpha_thre=threshold, **options)
        assert outputs[0].shape == (n_rays, 3)
        assert all(o.shape[0] == n_rays and not o.any() for o in outputs)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    p, s = net((8, 4), device), scene(device, n_rays=12)
    checks = ("test_schema", "test_faketensor")  # rows that are not evaluated hold anything: never equal
    density = (*along(s), p.working, p.levels, *p.weights[:2], s.to_unit, BIAS, 1e-4, True, True)
    torch.library.opcheck(OPS.instant_ngp_ray_densities.default, density, test_utils=checks)
    threshold = torch.zeros((), device=device)
    image = (*along(s), p.working, p.levels, *p.weights, s.to_unit, BIAS, 1e-4, threshold, True)
    torch.library.opcheck(OPS.instant_ngp_render.default, image)


@pytest.mark.gpu
def test_the_row_that_missing_samples_name_is_zero() -> None:
    """Where a march finds nothing, all sources are 0: what is read there must not spread."""
    p, s = net((8, 4), "cuda"), scene("cuda")
    nothing = s.samples._replace(offsets=torch.zeros_like(s.samples.offsets))
    rest = (p.working, p.levels, p.weights.density1, p.weights.density2, s.to_unit)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": torch.bfloat16, "early_stop_eps": 1e-4}
    poison = torch.full((len(s.samples.t_starts), 32), math.nan, dtype=torch.bfloat16, device="cuda")
    del poison  # the allocator hands it out again
    _, kept = ray_densities(s.rays, nothing, *rest, keep_encoded=True, **options)
    assert kept is not None
    assert not kept[0].any()
