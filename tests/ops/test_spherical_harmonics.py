from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.spherical_harmonics import MAX_DEGREE, reference, spherical_harmonics
from tests.ops.harness import DEVICES, assert_detected, check_op, rand

EPS = 2.0**-24
# Values reach sqrt((2l + 1) / (4 pi)) < 1 and are polynomials with coefficients up to 16 of up to 5 terms, after 4
# roundings of the direction; derivatives have up to 4 times that, summed over up to 25 coefficients.
BOUNDS = {"rtol": 0.0, "atol": 64 * EPS, "grad_rtol": 0.0, "grad_atol": 64 * 4 * 5 * EPS}


def directions(n: int, *, seed: int = 1) -> Tensor:
    """Lengths from 1/2 to 2."""
    unit = torch.nn.functional.normalize(rand(n, 3, seed=seed, low=-1.0), dim=-1)
    return unit * rand(n, 1, seed=seed + 1, low=0.5, high=2.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", range(1, MAX_DEGREE + 1))
def test_kernel_matches_the_reference(device: str, degree: int) -> None:
    for n in (0, 1, 255, 257, 5000):
        smooth = (0,) if degree > 1 else ()  # the constant has no derivative
        check_op(
            "spherical_harmonics", reference, (directions(n), degree), device=device, differentiable=smooth,
            opcheck=n in (0, 255), **BOUNDS,
        )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_axes_and_unknown_directions(device: str) -> None:
    inf, nan = float("inf"), float("nan")
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    check_op("spherical_harmonics", reference, (axes, 5), device=device, differentiable=(0,), opcheck=False, **BOUNDS)
    unknown = torch.tensor([[0.0, 0, 0], [nan, 0, 1], [inf, 0, 0], [1e-30, 0, 0], [0, 1e30, 0]])
    check_op("spherical_harmonics", reference, (unknown, 5), device=device, differentiable=(0,), opcheck=False, **BOUNDS)
    d = unknown.to(device).requires_grad_()
    out = spherical_harmonics(d, 5)
    assert (out[:, 0] == out[0, 0]).all()
    assert not out[:, 1:].any()
    (grad,) = torch.autograd.grad(out.sum(), d)
    assert not grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_degree_one_is_constant(device: str) -> None:
    d = directions(7).to(device).requires_grad_()
    out = spherical_harmonics(d, 1)
    torch.testing.assert_close(out, torch.full_like(out, 1 / math.sqrt(4 * math.pi)), rtol=EPS, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), d)
    assert not grad.any()


def test_signs_are_those_of_graphics() -> None:
    """Sloan 2013, appendix: Y_1 = 0.488603 (-y, z, -x), Y_2 = 1.092548 xy, -1.092548 yz, ..., -1.092548 xz, ..."""
    x, y, z = 0.48, -0.6, 0.64
    out = spherical_harmonics(torch.tensor([[x, y, z]]) * 3, 3)[0]
    a, b = 0.4886025119029199, 1.0925484305920792
    expected = [0.28209479177387814, -a * y, a * z, -a * x, b * x * y, -b * y * z, 0.31539156525252005 * (3 * z * z - 1)]
    expected += [-b * x * z, b / 2 * (x * x - y * y)]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=16 * EPS)


@pytest.mark.parametrize("device", DEVICES)
def test_orthonormal_over_the_sphere(device: str) -> None:
    """Gauss-Legendre in z times equal steps in phi integrates polynomials of degree 8 exactly."""
    n = 16
    beta = torch.tensor([k / math.sqrt(4 * k * k - 1) for k in range(1, n)], dtype=torch.float64)
    z, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    weight = (2 * vectors[0] ** 2)[:, None].expand(n, 2 * n).flatten() * (math.pi / n)
    phi = torch.arange(2 * n) * (math.pi / n)
    s = (1 - z * z).sqrt()
    points = torch.stack([s[:, None] * phi.cos(), s[:, None] * phi.sin(), z[:, None].expand(n, 2 * n)], -1).reshape(-1, 3)
    y = spherical_harmonics(points.float().to(device), 5).double().cpu()
    gram = y.T @ (weight[:, None] * y)
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64), rtol=0, atol=4 * math.pi * 64 * EPS)


def test_length_does_not_matter_and_the_gradient_is_tangential() -> None:
    d = directions(100)
    torch.testing.assert_close(spherical_harmonics(d * 1e3, 4), spherical_harmonics(d, 4), rtol=0, atol=64 * EPS)
    d.requires_grad_()
    (grad,) = torch.autograd.grad(spherical_harmonics(d, 4), d, rand(100, 16, seed=3, low=-1.0))
    torch.testing.assert_close((grad * d).sum(-1), torch.zeros(100), rtol=0, atol=BOUNDS["grad_atol"])


def test_gradcheck_of_the_reference() -> None:
    d = directions(4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: reference(v, 5), (d,))
    assert torch.autograd.gradgradcheck(lambda v: reference(v, 4), (d,))


def test_second_derivatives_raise() -> None:
    d = directions(4).requires_grad_()
    (grad,) = torch.autograd.grad(spherical_harmonics(d, 4).sum(), d, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"spherical_harmonics\.reference"):
        grad.sum().backward()


def test_the_comparison_detects_another_sign() -> None:
    def mutated(d: Tensor, degree: int) -> Tensor:  # without the Condon-Shortley phase
        return reference(d * torch.tensor([-1.0, -1.0, 1.0]), degree)

    assert_detected(
        lambda: check_op("spherical_harmonics", mutated, (directions(8), 4), device="cpu", opcheck=False, **BOUNDS)
    )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"directions: expected dtype torch.float32, got torch.float16"):
        spherical_harmonics(directions(2).half(), 4)
    with pytest.raises(ValueError, match=r"directions: expected shape \[N, 3\], got \[2, 2\]"):
        spherical_harmonics(directions(2)[:, :2], 4)
    for degree in (0, 6):
        with pytest.raises(ValueError, match=f"degree: expected 1 to 5, got {degree}"):
            spherical_harmonics(directions(2), degree)
