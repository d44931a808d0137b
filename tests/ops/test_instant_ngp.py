"""The fused field and its variants along rays, against references that run op by op."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_nerf.encodings import HashGrid
from lightning_nerf.ops import hash_grid, instant_ngp, spherical_harmonics
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.instant_ngp import SHAPES, Weights, field, ray_densities, render
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.visibility import prune, prune_from
from lightning_nerf.types import Evaluated, PackedSamples, Rays
from tests.ops.harness import DEVICES, assert_detected, generator, poison_tail, ragged_offsets, rand, to

LAYOUTS = [(16, 2), (8, 4)]  # levels, features per level
HALVES = [torch.bfloat16, torch.float16]
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
OPS = torch.ops.lightning_nerf

# Kernel and reference round the same operands; what differs is the order of float32 sums, which tips a rounding now and
# then. Among many numbers that is rare (1e-5 of the norm); among few, one may be off by the unit roundoff.
FORWARD = 1e-4


def normal(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(device)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative error of the norm."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


class Net(NamedTuple):
    """A field's parameters."""

    table: Tensor
    working: Tensor
    levels: Tensor
    weights: Weights


def net(layout: tuple[int, int], device: str) -> Net:
    """A small table with large entries, so that features vary and densities span orders of magnitude."""
    grid = HashGrid(n_levels=layout[0], n_features=layout[1], log2_table_size=12, max_resolution=256)
    table = 0.3 * normal(*grid.table.shape, seed=0)
    working = table.half()
    weights = [1.4 * normal(*s, seed=1 + i, device=device) / math.sqrt(s[1]) for i, s in enumerate(SHAPES.values())]
    return Net(working.float().to(device), working.to(device), grid.levels.to(device), Weights(*weights))


def points(n: int, device: str) -> tuple[Tensor, Tensor]:
    """Positions, one in twenty of them outside of the box, and directions of any length."""
    return rand(n, 3, seed=20 + n, low=-0.01, high=1.01).to(device), normal(n, 3, seed=21 + n, device=device)


def field_arguments(p: Net, x: Tensor, d: Tensor | None, dtype: torch.dtype) -> tuple[Any, ...]:
    return (x, d, p.table, p.working, p.levels, None, None, *p.weights, -1.0, dtype == torch.bfloat16, True)


def check_field(
    p: Net, n: int, dtype: torch.dtype, device: str, truth: Callable[..., Any] = instant_ngp.field_reference
) -> None:
    x, d = points(n, device)
    tolerance = FORWARD if n >= 1000 else ROUNDOFF[dtype]
    leaves = [t.detach().requires_grad_() for t in (p.table, *p.weights)]
    options: dict[str, Any] = {"density_bias": -1.0, "dtype": dtype}
    density, rgb = field(x, d, leaves[0], p.working, p.levels, Weights(*leaves[1:]), **options)
    expected_density, expected_rgb, features = truth(*field_arguments(p, x, d, dtype))
    assert distance(density, expected_density) <= tolerance
    assert distance(rgb, expected_rgb) <= tolerance
    outside = ((x < 0) | (x > 1)).any(-1)
    assert not density[outside].any()
    alone, nothing = field(x, None, p.table, p.working, p.levels, p.weights, **options)
    assert nothing.shape == (0, 3)
    torch.testing.assert_close(alone, density.detach(), rtol=0, atol=0)

    both = (0.1 * normal(n, seed=5, device=device), normal(n, 3, seed=6, device=device))
    for grads in (both, (both[0], None), (None, both[1])):
        given = [(o, g) for o, g in zip((density, rgb), grads, strict=True) if g is not None]
        actual = torch.autograd.grad([o for o, _ in given], leaves, [g for _, g in given], retain_graph=True)
        grad_features, flat = instant_ngp.field_backward_reference(*grads, x, d, features, None, *p.weights, -1.0)
        grad_table = hash_grid.table_gradient(grad_features, x, p.table, p.levels)
        expected = [grad_table, *flat.split([w.numel() for w in p.weights])]
        for a, e in zip(actual, expected, strict=True):
            # A gradient passes through up to four layers, each of which rounds it.
            assert distance(a.flatten(), e.flatten()) <= 4 * ROUNDOFF[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_field(device: str, dtype: torch.dtype, layout: tuple[int, int]) -> None:
    p = net(layout, device)
    for n in (0, 1, 15, 16, 17, 1000):
        check_field(p, n, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_field_of_more_samples_than_run_at_once(dtype: torch.dtype, layout: tuple[int, int]) -> None:
    for n in (20_000, 150_001):
        check_field(net(layout, "cuda"), n, dtype, "cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_the_comparison_detects_a_slightly_denser_fog(device: str) -> None:
    def mutated(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return instant_ngp.field_reference(*arguments[:-3], arguments[-3] + 1e-3, *arguments[-2:])

    p = net((16, 2), device)
    assert_detected(lambda: check_field(p, 1000, torch.float16, device, truth=mutated))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES)
def test_references_are_the_field_up_to_rounding(layout: tuple[int, int], dtype: torch.dtype) -> None:
    """Against autograd through the formulas in float64."""
    p, (x, d) = net(layout, "cpu"), points(400, "cpu")
    weights = [w.double().requires_grad_() for w in p.weights]
    encoded = hash_grid.reference(x, p.table, p.levels).double().requires_grad_()
    g = (encoded @ weights[0].T).relu() @ weights[1].T
    inside = ((x >= 0) & (x <= 1)).all(-1)
    density = (g[:, 0] - 1).exp() * inside
    shown = torch.cat([spherical_harmonics.reference(d, 4).double(), g], 1)
    rgb = torch.sigmoid(((shown @ weights[2].T).relu() @ weights[3].T).relu() @ weights[4].T)
    density_rounded, rgb_rounded, features = instant_ngp.field_reference(*field_arguments(p, x, d, dtype))
    # Six roundings lie between an encoding and a colour.
    assert distance(density_rounded, density.detach()) <= 6 * ROUNDOFF[dtype]
    assert distance(rgb_rounded, rgb.detach()) <= 6 * ROUNDOFF[dtype]
    grads = (0.1 * normal(400, seed=5), normal(400, 3, seed=6))
    expected = torch.autograd.grad([density, rgb], [encoded, *weights], [g.double() for g in grads])
    actual, flat = instant_ngp.field_backward_reference(*grads, x, d, features, None, *p.weights, -1.0)
    # Rounding changes the sign of hidden numbers within a few roundoffs of 0: that is the share of gradients that are wrong
    # altogether, and its square root is the error of their norm.
    tolerance = math.sqrt(6 * ROUNDOFF[dtype])
    assert distance(actual, expected[0]) <= tolerance
    for a, e in zip(flat.split([w.numel() for w in p.weights]), expected[1:], strict=True):
        assert distance(a.view_as(e), e) <= tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kept_encodings_give_the_same_bits(device: str, dtype: torch.dtype, layout: tuple[int, int]) -> None:
    p, (x, d) = net(layout, device), points(77, device)
    arguments = field_arguments(p, x, d, dtype)
    density, rgb, features = OPS.instant_ngp_field(*arguments)
    assert features.dtype == dtype
    order = torch.randperm(77, generator=generator(0)).to(device)
    scattered = torch.full((100, 32), float("nan"), dtype=dtype, device=device)  # rows that are not named may hold anything
    scattered[order] = features
    grads = (normal(77, seed=3, device=device), normal(77, 3, seed=4, device=device))
    direct = OPS.instant_ngp_field_backward(*grads, x, d, features, None, *p.weights, -1.0)
    for kept, sources in ((features, None), (scattered, order.int())):
        again = OPS.instant_ngp_field(*arguments[:5], kept, sources, *arguments[7:-1], False)
        assert torch.equal(again[0], density)
        assert torch.equal(again[1], rgb)
        assert len(again[2]) == 0
        back = OPS.instant_ngp_field_backward(*grads, x, d, kept, sources, *p.weights, -1.0)
        assert all(torch.equal(a, b) for a, b in zip(back, direct, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_row(device: str) -> None:
    p, (x, d) = net((16, 2), device), points(40, device)
    arguments = field_arguments(p, x.clone(), d.clone(), torch.bfloat16)
    clean = OPS.instant_ngp_field(*arguments)
    arguments[0][7] = float("nan")
    arguments[1][21] = float("nan")
    density, rgb, _ = OPS.instant_ngp_field(*arguments)
    others = torch.tensor([i not in (7, 21) for i in range(40)], device=device)
    assert density[7] == 0
    assert torch.equal(density[others], clean[0][others])
    assert torch.equal(rgb[others], clean[1][others])


# -- along rays ----------------------------------------------------------------------------------------------------------


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
def test_ray_densities(device: str, dtype: torch.dtype, layout: tuple[int, int]) -> None:
    p, s = net(layout, device), scene(device)
    n = len(s.owner)
    rest = (p.working, p.levels, p.weights.density1, p.weights.density2, s.to_unit)
    expected, encoded = instant_ngp.ray_densities_reference(*along(s), *rest, BIAS, 0.0, dtype == torch.bfloat16, True)
    in_front = depth_in_front(s, expected)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": dtype}
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
        assert torch.equal(again, densities)


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
@pytest.mark.parametrize("alpha_thre", [0.0, 0.3])
def test_render(device: str, dtype: torch.dtype, layout: tuple[int, int], alpha_thre: float) -> None:
    p, s = net(layout, device), scene(device)
    threshold = torch.tensor(alpha_thre, device=device)
    arguments = (p.working, p.levels, p.weights, s.to_unit)
    options: dict[str, Any] = {"density_bias": BIAS, "dtype": dtype}
    rgb, opacity, depth, count = render(s.rays, s.samples, *arguments, early_stop_eps=1e-4, alpha_thre=threshold, **options)
    expected = instant_ngp.render_reference(
        *along(s), p.working, p.levels, *p.weights, s.to_unit, BIAS, 1e-4, threshold, dtype == torch.bfloat16
    )

    survivors = prune(
        ray_densities(s.rays, s.samples, p.working, p.levels, *p.weights[:2], s.to_unit, early_stop_eps=0.0, **options)[0],
        s.samples,
        early_stop_eps=1e-4,
        alpha_thre=threshold,
    )
    positions, directions, _ = sample_points(s.rays, survivors)
    density, colors = field(s.to_unit[1] + positions * s.to_unit[0], directions, *p, **options)
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


# -- the contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    p, (x, d), s = net((8, 4), device), points(20, device), scene(device, n_rays=12)
    table, *weights = (t.detach().requires_grad_() for t in (p.table, *p.weights))
    q = p._replace(table=table, weights=Weights(*weights))
    torch.library.opcheck(OPS.instant_ngp_field.default, field_arguments(q, x, d, torch.float16))
    checks = ("test_schema", "test_faketensor")  # rows that are not evaluated hold anything: never equal
    density = (*along(s), p.working, p.levels, *p.weights[:2], s.to_unit, BIAS, 1e-4, True, True)
    torch.library.opcheck(OPS.instant_ngp_ray_densities.default, density, test_utils=checks)
    threshold = torch.zeros((), device=device)
    image = (*along(s), p.working, p.levels, *p.weights, s.to_unit, BIAS, 1e-4, threshold, True)
    torch.library.opcheck(OPS.instant_ngp_render.default, image)


def test_second_derivatives_are_refused() -> None:
    p, (x, d) = net((16, 2), "cpu"), points(5, "cpu")
    weights = Weights(*(w.requires_grad_() for w in p.weights))
    density, _ = field(x, d, p.table, p.working, p.levels, weights, density_bias=-1.0, dtype=torch.float16)
    (grad,) = torch.autograd.grad(density.square().sum(), weights.density1, create_graph=True)
    with pytest.raises(NotImplementedError, match="fused=False"):
        grad.sum().backward()


def test_bad_arguments_are_named() -> None:
    p, (x, d) = net((16, 2), "cpu"), points(5, "cpu")
    options: dict[str, Any] = {"density_bias": -1.0, "dtype": torch.float16}
    with pytest.raises(ValueError, match=r"positions: expected shape \[N, 3\]"):
        field(x[:, :2], d, *p, **options)
    with pytest.raises(ValueError, match=r"directions: expected shape \[5, 3\]"):
        field(x, d[:4], *p, **options)
    with pytest.raises(ValueError, match=r"working: expected dtype torch.float16"):
        field(x, d, *p._replace(working=p.table), **options)
    with pytest.raises(ValueError, match=r"levels: expected shape \[16, 3\]"):
        field(x, d, *p._replace(levels=p.levels[:8]), **options)
    with pytest.raises(ValueError, match=r"weights.color3: expected shape \[3, 64\]"):
        field(x, d, *p._replace(weights=p.weights._replace(color3=p.weights.color2)), **options)
    with pytest.raises(ValueError, match=r"dtype: expected torch.float16 or torch.bfloat16, got torch.float32"):
        field(x, d, *p, density_bias=-1.0, dtype=torch.float32)
