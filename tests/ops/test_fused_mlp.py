from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.fused_mlp import fused_mlp, has_kernel, reference, reference_backward
from tests.ops.harness import DEVICES, assert_detected, generator
from tests.ops.rounding import known, layer, relu

# Inputs, width, hidden layers, outputs: all widths, all numbers of layers, ends that are and are not multiples of 4, 8, 16.
SHAPES = [
    (32, 64, 1, 16),
    (32, 64, 2, 3),
    (7, 16, 1, 1),
    (16, 16, 4, 5),
    (33, 32, 3, 100),
    (80, 64, 2, 40),
    (128, 128, 1, 128),
    (3, 128, 4, 3),
    (128, 16, 2, 128),
]
HALVES = [torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(device, dtype)


def perceptron(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    """Weights that keep the variance of what passes through."""
    n_inputs, width, hidden_layers, n_outputs = shape
    sizes = [n_inputs, *[width] * hidden_layers, n_outputs]
    return [normal(b, a, seed=i, device=device) * math.sqrt(2 / a) for i, (a, b) in enumerate(itertools.pairwise(sizes))]


# -- numbers whose sums are exact ----------------------------------------------------------------------------------------
# Else a kernel, which sums in another order than its reference, rounds some numbers to their other neighbor, and passes
# some gradients that the reference's ReLU stops: off by so much that a comparison would have to be loose.


def nearly(x: Tensor, seed: int) -> Tensor:
    """float32 numbers that any rounding to nearest takes back to x, and any other to some neighbor."""
    error = (
        0.9 * 2.0**-12 * (2 * torch.rand(x.shape, generator=generator(seed)) - 1)
    )  # float16 errs by up to 2^-12 below 2^k
    return x * (1 + error.to(x.device))


def quarters(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    return nearly((4 * normal(*shape, seed=seed, device=device)).round() / 4, seed + 1000)


def powers_of_two(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    """A perceptron whose layers' weights are one power of two, of either sign."""
    weights = perceptron(shape, device)
    return [nearly(2.0 ** round(math.log2(2 / w.shape[1]) / 2) * w.sign(), seed=i) for i, w in enumerate(weights)]


def grain(x: Tensor) -> float:
    """The largest power of two, up to 1, of which all numbers are multiples."""
    unit = 1.0
    while not torch.equal((x / unit).round(), x / unit):
        unit /= 2
    return unit


def assert_exact(a: Tensor, b: Tensor) -> None:
    """No sum of products in ``a @ b`` needs more than the 24 bits of float32, in whatever order."""
    assert (a.abs() @ b.abs()).amax() < 2**24 * grain(a) * grain(b)


def assert_exact_throughout(x: Tensor, weights: list[Tensor], grad: Tensor, dtype: torch.dtype) -> None:
    """Forwards and backwards, but for the sums over rows."""
    passed = []
    x, grad, *weights = (t.detach().to(dtype).double() for t in (x, grad, *weights))
    for w in weights:
        assert_exact(x, w.T)
        x = (x @ w.T).to(dtype).double().relu()
        passed.append(x > 0)
    for w, mask in zip(reversed(weights), [*reversed(passed[:-1]), None], strict=True):
        assert_exact(grad, w)
        grad = (grad @ w).to(dtype).double()
        grad = grad if mask is None else grad * mask


def five(weights: Sequence[Tensor]) -> list[Tensor | None]:
    return [*weights, *[None] * (5 - len(weights))]


def distance(actual: Tensor, expected: Tensor) -> Tensor:
    """Relative error of the norm."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    return (actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)


def check(
    x: Tensor,
    weights: list[Tensor],
    dtype: torch.dtype,
    truth: Callable[..., Tensor] = reference,
    grad_dtype: torch.dtype | None = None,
) -> None:
    """Outputs and gradients for numbers whose sums are exact: equal to the reference's to the bit."""
    grad = quarters(len(x), len(weights[-1]), seed=50, device=str(x.device))
    if len(x) > 0:
        assert_exact_throughout(x, weights, grad, dtype)
    x = x.detach().requires_grad_()
    weights = [w.detach().requires_grad_() for w in weights]
    y = fused_mlp(x, weights, dtype=dtype)
    assert torch.equal(y, truth(x, *five(weights), dtype))
    if grad_dtype is None:
        actual = torch.autograd.grad(y, [x, *weights], grad.to(dtype))
    else:  # autograd would round it to y's
        grad = grad.to(grad_dtype)
        both = torch.ops.lightning_nerf.fused_mlp_backward(grad, x.detach(), *five(weights), dtype, True, True)
        actual = (both[0], *split(both[1], weights))
    grad_x, flat = reference_backward(grad, x, *five(weights), dtype, True, True)
    assert torch.equal(actual[0], grad_x)
    for a, e in zip(actual[1:], split(flat, weights), strict=True):
        assert_sums_are_near(a, e, len(x))


def split(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    return [g.view(w.shape) for g, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]


def assert_sums_are_near(actual: Tensor, expected: Tensor, n: int) -> None:
    """Float32 sums of n terms of either sign: n roundings of either sign, of partial sums up to a few times the result."""
    assert distance(actual, expected) <= 4 * math.sqrt(n) * 2.0**-24


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_agrees_with_reference(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    weights = powers_of_two(shape, device)
    for n in (0, 1, 15, 16, 17, 1000):
        check(quarters(n, shape[0], seed=10 + n, device=device).to(dtype if n % 2 else torch.float32), weights, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(32, 64, 2, 3), (64, 128, 2, 16), (128, 128, 4, 128)])
def test_many_rows(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """More than run at once."""
    check(quarters(200_001, shape[0], seed=1, device="cuda"), powers_of_two(shape, "cuda"), dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_real_numbers(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """Sums that are not exact: the order now and then tips a rounding, by eps of that number. Among many numbers one in a
    hundred is: a tenth of eps of the norm, and more behind a layer that amplifies it. Gradients are compared of one hidden
    layer, where few rows have a sum so close to 0 that the order decides whether its ReLU passes the gradient.
    """
    eps, weights = torch.finfo(dtype).eps, [w.requires_grad_() for w in perceptron(shape, device)]
    x = normal(1000, shape[0], seed=7, device=device).requires_grad_()
    y = fused_mlp(x, weights, dtype=dtype)
    assert distance(y, reference(x, *five(weights), dtype)) <= eps / 4
    if shape[2] > 1:
        return
    decided = relu(layer(known(x.detach()), weights[0].detach(), dtype), dtype)[1]
    assert decided.double().mean() > 0.9
    grad = normal(*y.shape, seed=8, device=device, dtype=dtype) * decided[:, None]
    grad_x, flat = reference_backward(grad, x, *five(weights), dtype, True, True)
    actual = torch.autograd.grad(y, [x, *weights], grad)
    for a, e in zip(actual, [grad_x, *split(flat, weights)], strict=True):
        assert distance(a, e) <= eps / 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_any_float_and_any_layout_of_inputs_and_gradients(device: str, dtype: torch.dtype) -> None:
    weights = powers_of_two((32, 32, 1, 8), device)
    shifted = quarters(37 * 32 + 1, seed=3, device=device)[1:].view(37, 32)  # no access of 16 bytes
    strided = quarters(32, 37, seed=4, device=device).T
    for x in (shifted, strided, shifted.half(), shifted.bfloat16()):
        check(x, weights, dtype)
    for grad_dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(shifted.contiguous(), weights, dtype, grad_dtype=grad_dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_gradients_asked_for(device: str) -> None:
    x, weights = quarters(50, 16, seed=0, device=device), powers_of_two((16, 32, 2, 4), device)
    grad = quarters(50, 4, seed=1, device=device).bfloat16()
    both = reference_backward(grad, x, *five(weights), torch.bfloat16, True, True)
    y = fused_mlp(x.requires_grad_(), weights, dtype=torch.bfloat16)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], both[0])
    weights[1].requires_grad_()
    y = fused_mlp(x.detach(), weights, dtype=torch.bfloat16)
    assert_sums_are_near(torch.autograd.grad(y, weights[1], grad)[0], split(both[1], weights)[1], 50)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_it_is_what_autocast_does(device: str, dtype: torch.dtype) -> None:
    weights = perceptron((24, 64, 2, 20), device)
    x = normal(500, 24, seed=7, device=device)
    with torch.autocast(device, dtype=dtype):
        y = x
        for w in weights[:-1]:
            y = torch.nn.functional.linear(y, w).relu()
        y = torch.nn.functional.linear(y, weights[-1])
    # A rounding that the order of sums tips is off by eps; one in a hundred is.
    assert distance(fused_mlp(x, weights, dtype=dtype), y) <= torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_the_same_in_every_run(device: str) -> None:
    n = 100_000 if device == "cuda" else 300
    x, weights = normal(n, 32, seed=0, device=device), perceptron((32, 64, 2, 3), device)
    grad = normal(n, 3, seed=1, device=device, dtype=torch.float16)
    arguments = (grad, x, *five(weights), torch.float16, True, True)
    first = torch.ops.lightning_nerf.fused_mlp_backward(*arguments)
    second = torch.ops.lightning_nerf.fused_mlp_backward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_row(device: str) -> None:
    x, weights = normal(40, 16, seed=0, device=device), perceptron((16, 16, 2, 16), device)
    clean = fused_mlp(x, weights, dtype=torch.float16)
    x[21] = float("nan")
    poisoned = x.clone().requires_grad_()
    y = fused_mlp(poisoned, weights, dtype=torch.float16)
    others = torch.arange(40, device=device) != 21
    assert y[21].isnan().all()
    assert torch.equal(y[others], clean[others])
    (grad,) = torch.autograd.grad(y, poisoned, torch.ones_like(y))
    assert grad[others].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    for shape in ((20, 16, 1, 3), (8, 32, 4, 17)):
        weights = [w.requires_grad_() for w in perceptron(shape, device)]
        x = normal(19, shape[0], seed=0, device=device).requires_grad_()
        torch.library.opcheck(torch.ops.lightning_nerf.fused_mlp.default, (x, *five(weights), torch.bfloat16))


@pytest.mark.parametrize("hidden_layers", [1, 4])
def test_the_reference_has_two_derivatives(hidden_layers: int) -> None:
    """Without rounding: its operands in float64."""
    weights = [w.double().requires_grad_() for w in perceptron((3, 16, hidden_layers, 2), "cpu")]
    x = normal(4, 3, seed=0).double().requires_grad_()

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return reference(x, *five(weights), torch.float64)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, (x, *weights))
    assert torch.autograd.gradgradcheck(function, (x, *weights))


def test_the_kernel_has_one() -> None:
    weights = [w.requires_grad_() for w in perceptron((3, 16, 1, 2), "cpu")]
    y = fused_mlp(normal(4, 3, seed=0), weights, dtype=torch.float16)
    (grad,) = torch.autograd.grad(y.float().square().sum(), weights[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="fused=False"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_the_comparison_detects_a_missing_relu(device: str) -> None:
    def mutated(x: Tensor, *rest: Tensor | torch.dtype | None) -> Tensor:
        *weights, dtype = rest
        for w in weights:
            x = x if w is None else x @ w.T  # type: ignore[union-attr]
        return x.to(dtype)  # type: ignore[call-overload]

    x, weights = quarters(40, 16, seed=0, device=device), powers_of_two((16, 16, 2, 16), device)
    check(x, weights, torch.float16)
    assert_detected(lambda: check(x, weights, torch.float16, truth=mutated))


def test_bad_arguments_are_named() -> None:
    x, weights = normal(5, 8, seed=0), perceptron((8, 32, 2, 4), "cpu")
    with pytest.raises(ValueError, match="2 to 5 matrices, got 1"):
        fused_mlp(x, weights[:1], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"weights\[0\]: expected shape \[32, 7\]"):
        fused_mlp(x[:, :7], weights, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected dtype torch.float32"):
        fused_mlp(x, [weights[0], weights[1].half(), weights[2]], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x: expected dtype .* got torch.float64"):
        fused_mlp(x.double(), weights, dtype=torch.float16)
    with pytest.raises(ValueError, match="hidden width of 16, 32, 64, 128, got 24"):
        fused_mlp(x, perceptron((8, 24, 1, 4), "cpu"), dtype=torch.float16)
    with pytest.raises(ValueError, match="1 to 128 inputs and outputs, got 8 and 129"):
        fused_mlp(x, perceptron((8, 16, 1, 129), "cpu"), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype: expected torch.float16 or torch.bfloat16"):
        fused_mlp(x, weights, dtype=torch.float32)


def test_no_kernel_where_there_is_none() -> None:
    assert not has_kernel(torch.device("cpu"), 32, 64, 1, 16)
    assert not has_kernel(torch.device("cuda", 0), 32, 48, 1, 16)
    assert not has_kernel(torch.device("cuda", 0), 129, 64, 1, 16)
    assert not has_kernel(torch.device("cuda", 0), 32, 64, 5, 16)
