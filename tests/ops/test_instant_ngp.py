"""The fused field against its reference, which runs op by op."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import hash_grid, instant_ngp, library, spherical_harmonics
from lightning_nerf.ops.instant_ngp import Weights, field
from tests.ops.harness import DEVICES, assert_detected, generator
from tests.ops.ngp import FORWARD, HALVES, LAYOUTS, OPS, ROUNDOFF, Net, distance, field_arguments, net, normal, points
from tests.ops.rounding import CUT, Interval, known, layer, relu


def decided(p: Net, features: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """[N]: do kernel and reference pass the same gradients at every ReLU, however their sums were rounded?"""
    weights = p.weights
    hidden, first = relu(layer(known(features), weights.density1, dtype), dtype)
    geometry = layer(hidden, weights.density2, dtype)
    # Harmonics are polynomials of degree 3 of a normalized direction: some ten roundings of numbers below 4.
    harmonics = known(spherical_harmonics.reference(d.double(), 4), 40 * CUT)
    shown = Interval(*(torch.cat(parts, 1) for parts in zip(harmonics, geometry, strict=True)))
    hidden, second = relu(layer(shown, weights.color1, dtype), dtype)
    return first & second & relu(layer(hidden, weights.color2, dtype), dtype)[1]


def check_field(
    p: Net, n: int, dtype: torch.dtype, device: str, truth: Callable[..., Any] = instant_ngp.field_reference
) -> None:
    x, d = points(n, device)
    tolerance = FORWARD if n >= 1000 else ROUNDOFF[dtype]
    leaves = [t.detach().requires_grad_() for t in (p.table, *p.weights)]
    options: dict[str, Any] = {"density_bias": -1.0, "dtype": dtype}
    density, rgb = field(x, d, leaves[0], p.working, p.levels, Weights(*leaves[1:]), **options)
    expected_density, expected_rgb, expected_features = truth(*field_arguments(p, x, d, dtype))
    assert distance(density, expected_density) <= tolerance
    assert distance(rgb, expected_rgb) <= tolerance
    outside = ((x < 0) | (x > 1)).any(-1)
    assert not density[outside].any()
    alone, nothing = field(x, None, p.table, p.working, p.levels, p.weights, **options)
    assert nothing.shape == (0, 3)
    torch.testing.assert_close(alone, density.detach(), rtol=0, atol=0)

    features = OPS.instant_ngp_field(*field_arguments(p, x, d, dtype))[2]  # the kernel's, which its backward pass reads
    assert distance(features, expected_features) <= tolerance
    counted = decided(p, features, d, dtype)
    assert n < 1000 or counted.double().mean() > 2 / 3  # by the worst case; one in a thousand differs
    both = (0.1 * normal(n, seed=5, device=device) * counted, normal(n, 3, seed=6, device=device) * counted[:, None])
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
@pytest.mark.parametrize("n", [0, 1, 1000])
@pytest.mark.parametrize("alone", [False, True])
def test_positions_get_the_hash_grids_gradient(
    device: str, dtype: torch.dtype, layout: tuple[int, int], n: int, alone: bool
) -> None:
    """For the gradient of the features that the field's own backward pass finds; alone: nothing else wants one."""
    p, (x, d) = net(layout, device), points(n, device)
    working = (1.01 * p.working.float()).half()  # what is read is this, not the table
    x.requires_grad_()
    table = p.table.detach().requires_grad_(not alone)
    density, rgb = field(x, d, table, working, p.levels, p.weights, density_bias=-1.0, dtype=dtype)
    grads = 0.1 * normal(n, seed=5, device=device), normal(n, 3, seed=6, device=device)
    (found,) = torch.autograd.grad((density, rgb), x, grads)
    arguments = list(field_arguments(p, x.detach(), d, dtype))
    arguments[3] = working
    features = OPS.instant_ngp_field(*arguments)[2]
    grad_features = OPS.instant_ngp_field_backward(*grads, x.detach(), d, features, None, *p.weights, -1.0)[0]
    encoded = hash_grid.hash_grid(x, working.float(), p.levels)
    (expected,) = torch.autograd.grad(encoded, x, grad_features.float())
    assert n == 0 or expected.any()
    assert distance(found, expected) <= FORWARD


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_saturated_colors_pass_a_gradient_back_but_none_further_out(device: str, dtype: torch.dtype, sign: float) -> None:
    """With logits of thousands, of either sign, the sigmoid's own gradient is 0."""
    p, (x, d) = net((8, 4), device), points(2000, device)
    weights = [w.abs() for w in p.weights[:4]]
    weights[1] = torch.cat([p.weights.density2[:1], weights[1][1:]])  # densities stay small
    weights.append((sign * 1000 * p.weights.color3.abs()).requires_grad_())
    options: dict[str, Any] = {"density_bias": -1.0, "dtype": dtype}
    _, rgb = field(x, d, p.table, p.working, p.levels, Weights(*weights), **options)
    far_out = (rgb == (sign > 0)).all(1)
    assert far_out.double().mean() > 0.9
    grad = normal(2000, 3, seed=6, device=device).abs() * far_out[:, None]
    (back,) = torch.autograd.grad(rgb, weights[4], sign * grad, retain_graph=True)
    (further,) = torch.autograd.grad(rgb, weights[4], -sign * grad)
    assert not further.any()
    features = OPS.instant_ngp_field(*field_arguments(p, x, d, dtype))[2]
    arguments = (None, sign * grad, x, d, features, None, *(w.detach() for w in weights), -1.0)
    expected = instant_ngp.field_backward_reference(*arguments)[1][-back.numel() :].view_as(back)
    assert back.any()
    assert distance(back, expected) <= 4 * ROUNDOFF[dtype]


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
    # Six roundings lie between an encoding and a color.
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


# -- the contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    p, (x, d) = net((8, 4), device), points(20, device)
    table, *weights = (t.detach().requires_grad_() for t in (p.table, *p.weights))
    q = p._replace(table=table, weights=Weights(*weights))
    torch.library.opcheck(OPS.instant_ngp_field.default, field_arguments(q, x, d, torch.float16))


def test_second_derivatives_are_refused() -> None:
    p, (x, d) = net((16, 2), "cpu"), points(5, "cpu")
    weights = Weights(*(w.requires_grad_() for w in p.weights))
    density, _ = field(x, d, p.table, p.working, p.levels, weights, density_bias=-1.0, dtype=torch.float16)
    (grad,) = torch.autograd.grad(density.square().sum(), weights.density1, create_graph=True)
    with pytest.raises(NotImplementedError, match="fused=False"):
        grad.sum().backward()


def test_directions_that_require_a_gradient_are_refused() -> None:
    p, (x, d) = net((16, 2), "cpu"), points(5, "cpu")
    with pytest.raises(NotImplementedError, match="no derivative in directions; build the field with fused=False"):
        field(x, d.requires_grad_(), *p, density_bias=-1.0, dtype=torch.float16)
    with torch.no_grad():
        field(x, d, *p, density_bias=-1.0, dtype=torch.float16)


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


@pytest.mark.skipif(not library.has_kernel("instant_ngp_field", "CUDA"), reason="the library has no CUDA kernels")
@pytest.mark.parametrize(
    ("major", "shared", "expected"), [(9, 232448, True), (8, 166912, True), (8, 101376, False), (7, 232448, False)]
)
def test_gpus_with_too_little_shared_memory_run_op_by_op(
    monkeypatch: pytest.MonkeyPatch, major: int, shared: int, expected: bool
) -> None:
    properties = SimpleNamespace(major=major, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert instant_ngp.has_kernels.__wrapped__(torch.device("cuda", 0)) is expected
    assert not instant_ngp.has_kernels.__wrapped__(torch.device("cpu"))
