"""The activations against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.fields.activations import leaky_sigmoid

WAY_BACK = 0.006648056671  # sigmoid'(5)


def gradient(x: Tensor, grad: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(leaky_sigmoid(leaf), leaf, grad)[0]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_unsaturated_sigmoid_keeps_its_bits(sign: float) -> None:
    x = torch.linspace(-11.9, 11.9, 10001, requires_grad=True)
    grad = sign * torch.linspace(0.01, 7, 10001)
    assert torch.equal(leaky_sigmoid(x), x.sigmoid())
    assert torch.equal(gradient(x.detach(), grad), torch.autograd.grad(x.sigmoid(), x, grad)[0])


@pytest.mark.parametrize(
    ("x", "grad", "slope"),
    [
        (-12.1, -2.0, WAY_BACK),  # descent raises x, towards 0
        (-12.1, 2.0, 5.5595e-6),  # descent lowers x: the true derivative
        (12.5, 2.0, WAY_BACK),
        (-11.9, -2.0, 6.7903e-6),
        (-1000.0, -1e-6, WAY_BACK),
        (-1000.0, 1e-6, 0.0),
        (1000.0, 1e-6, WAY_BACK),
        (1000.0, -1e-6, 0.0),
    ],
)
def test_a_saturated_sigmoid_can_return_and_is_not_driven_further(x: float, grad: float, slope: float) -> None:
    assert leaky_sigmoid(torch.tensor(x)) == torch.tensor(x).sigmoid()
    assert float(gradient(torch.tensor(x), torch.tensor(grad))) == pytest.approx(grad * slope, rel=1e-4)


def test_half_precision_gives_float32_and_a_missing_number_stays_one() -> None:
    assert leaky_sigmoid(torch.tensor([1.0], dtype=torch.bfloat16)).dtype is torch.float32
    assert gradient(torch.tensor([float("nan")]), torch.tensor([1.0])).isnan()
    assert gradient(torch.tensor([-50.0]), torch.tensor([float("nan")])).isnan()


def test_the_second_derivative_is_that_of_the_sigmoid() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float32, requires_grad=True)
    second = [
        torch.autograd.grad(torch.autograd.grad(f(x).sum(), x, create_graph=True)[0].sum(), x)[0]
        for f in (leaky_sigmoid, torch.sigmoid)
    ]
    torch.testing.assert_close(*second)
