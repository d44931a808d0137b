from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.ops.interlevel import interlevel, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, run_with_grad

NAN = float("nan")
SIZES = {  # rows, intervals, coarse intervals
    "no row": (0, 3, 4),
    "one interval": (3, 1, 1),
    "a warp": (4, 32, 31),
    "more than a warp": (5, 33, 64),
    "the recipe": (9, 48, 256),
    "too long for shared memory": (2, 1700, 5),
}
WIDTHS = [0.0, 0.003, 0.03, 5.0]


def histogram(k: int, n: int, *, seed: int, origin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rising edges, half of whose intervals lie in thin light around 0.4, two edges being equal; weights of sum < 1."""
    edges = rand(k, n + 1, seed=seed)
    edges[:, ::2] = 0.4 + 1e-4 * edges[:, ::2]
    edges = edges.sort(1).values
    edges[:, 1::5] = edges[:, :-1:5]
    return origin + edges, rand(k, n, seed=seed + 50) / n


def make(name: str, width: float, *, idle: bool = True) -> tuple[Any, ...]:
    """Arguments of the op, where with ``idle`` every third row does not count and holds NaN."""
    k, n, m = SIZES[name]
    tensors = [*histogram(k, n, seed=0), *histogram(k, m, seed=1)]
    tensors[3][:, ::3] *= 1e-4  # far too little there
    counting = torch.ones(k, dtype=torch.bool)
    if idle:
        counting[2::3] = False
        for each in tensors:
            each[2::3] = NAN
    return *tensors, counting, width


def by_loops(edges: Tensor, weights: Tensor, coarse_edges: Tensor, coarse: Tensor, width: float) -> Tensor:
    """One row by the definitions, in float64; the blurred histogram as overlaps of boxes, integrated by many steps."""
    edges, weights, coarse_edges, coarse = (each.double() for each in (edges, weights, coarse_edges, coarse))
    lows, highs = edges[:-1], edges[1:]
    if width == 0:
        overlaps = (coarse_edges[None, :-1] < highs[:, None]) & (coarse_edges[None, 1:] > lows[:, None])
        bound = (overlaps * coarse).sum(1)
        return ((weights - bound).clamp(min=0) ** 2 / (weights + 1e-7)).sum()
    found: list[Tensor] = []
    for low, high in itertools.pairwise(coarse_edges):
        at = low + (high - low) * (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
        overlap = ((at[:, None] + width).minimum(highs) - (at[:, None] - width).maximum(lows)).clamp(min=0)
        share = torch.where(highs > lows, overlap / (highs - lows).clamp(min=1e-300), 0.0)
        found.append((share * weights).sum(1).mean() * (high - low) / (2 * width))
    over = torch.stack(found) - coarse
    return (over.clamp(min=0) ** 2 / (coarse.detach() + 1e-7)).sum()


def limits(width: float) -> dict[str, float]:
    """Both sides compute in float64 and round once: half an ulp of float32 each, and as much for the cotangent's product.

    The blurred reference adds slopes up to weight / length / 2 width = 1e-2 / 1e-7 / 6e-3, which cancel: an error of
    2e7 * 2^-53 each, 2e-9 in two hundred, hence 2e-11 of a weight, since knots are up to 0.1 apart and intervals as long. A
    derivative is twice that over 1e-7.
    """
    atol = 4e-4 if width > 0 else 1e-9
    return {"rtol": 2**-23, "atol": atol, "grad_rtol": 2**-22, "grad_atol": atol}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SIZES)
def test_kernel_equals_the_reference(name: str, width: float, device: str) -> None:
    opcheck = name == "a warp" and width in (0.0, 0.03)
    args = make(name, width)
    check_op("interlevel", reference, args, device=device, differentiable=(3,), opcheck=opcheck, **limits(width))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [0.0, 0.02, 0.3])
def test_values_and_gradients_are_those_of_the_definition(width: float, device: str) -> None:
    edges, weights, coarse_edges, coarse = *histogram(3, 6, seed=3), *histogram(3, 5, seed=4)
    counting = torch.ones(3, dtype=torch.bool)

    def loops(coarse: Tensor) -> Tensor:
        rows = zip(edges, weights, coarse_edges, coarse, strict=True)
        return torch.stack([by_loops(*row, width) for row in rows]).float()

    def kernel(coarse: Tensor) -> Tensor:
        places = (each.to(device) for each in (edges, weights, coarse_edges))
        return interlevel(*places, coarse, counting.to(device), width=width or None)

    toll = rand(3, seed=9)
    (truth,), (grad_truth,) = run_with_grad(loops, (coarse,), (0,), [toll])
    (found,), (grad,) = run_with_grad(kernel, (coarse.to(device),), (0,), [toll.to(device)])
    assert truth.min() > 1e-3
    torch.testing.assert_close(found.cpu(), truth, rtol=1e-3, atol=0)
    torch.testing.assert_close(grad.cpu(), grad_truth, rtol=1e-3, atol=1e-4 * float(grad_truth.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_thin_light_is_found_where_float32_would_lose_it(device: str) -> None:
    """All weight on an interval of one ulp: each coarse interval has its share of the box to float32's precision."""
    low = torch.tensor(0.7)
    edges = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])[None]
    coarse_edges = torch.linspace(0.69, 0.71, 41)[None]
    coarse = torch.zeros(1, 40).requires_grad_()
    args = (each.to(device) for each in (edges, torch.ones(1, 1), coarse_edges, coarse, torch.tensor([True])))
    (grad,) = torch.autograd.grad(interlevel(*args, width=0.003).sum(), coarse)
    found = grad * -0.5 * 1e-7
    ends, middle = coarse_edges.double(), float(edges.double().mean())
    cut = ends.clamp(middle - 0.003, middle + 0.003).diff(dim=1) / 0.006
    torch.testing.assert_close(found.double(), cut, rtol=1e-5, atol=2e-5)  # the corners are rounded by an ulp's width
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_does_not_matter_where_rows_begin(width: float, device: str) -> None:
    near, far = ([*histogram(4, 20, seed=1, origin=at), *histogram(4, 30, seed=2, origin=at)] for at in (0.0, 64.0))
    near[0], near[2] = far[0] - 64, far[2] - 64  # rounded alike
    rows = torch.ones(4, dtype=torch.bool, device=device)
    a, b = (interlevel(*(each.to(device) for each in args), rows, width=width or None) for args in (near, far))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [0.0, 0.03])
def test_a_weight_that_is_no_number_stays_in_its_row(width: float, device: str) -> None:
    for spoiled in range(4):
        args = [each.to(device) if isinstance(each, Tensor) else each for each in make("a warp", width, idle=False)]
        args[spoiled][1, 3] = NAN
        coarse = args[3].requires_grad_()
        excess = interlevel(*args[:5], width=width or None)
        assert excess[[0, 2, 3]].isfinite().all()
        if spoiled in (1, 3):
            assert excess[1].isnan()
        (grad,) = torch.autograd.grad(excess[[0, 2, 3]].sum(), coarse)
        assert grad[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("width", [0.0, 0.03])
def test_transforms_and_second_derivatives_are_the_references(width: float) -> None:
    *tensors, coarse, counting, _ = make("a warp", width)

    def loss(coarse: Tensor) -> Tensor:
        return interlevel(*tensors, coarse, counting, width=width or None).sum()

    plain = coarse.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(plain), plain)
    torch.testing.assert_close(torch.func.grad(loss)(coarse), grad, rtol=3e-6, atol=1e-9)
    (first,) = torch.autograd.grad(loss(plain), plain, create_graph=True)
    torch.testing.assert_close(first, grad, rtol=3e-6, atol=1e-9)
    (second,) = torch.autograd.grad(first.sum(), plain)
    expected = torch.func.grad(lambda coarse: torch.func.grad(loss)(coarse).sum())(coarse)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-8)
    assert second.abs().max() > 0


def test_nothing_else_has_a_gradient() -> None:
    *tensors, counting, width = make("a warp", 0.03)
    for each in tensors:
        each.requires_grad_()
    grads = torch.autograd.grad(interlevel(*tensors, counting, width=width).sum(), tensors, allow_unused=True)
    assert [grad is None for grad in grads] == [True, True, True, False]


def test_other_shapes_are_refused() -> None:
    edges, weights, coarse_edges, coarse, counting, _ = make("a warp", 0.0)
    cases: list[tuple[tuple[Tensor, ...], float | None, str]] = [
        ((edges[0], weights, coarse_edges, coarse, counting), None, "edges: expected shape"),
        ((edges[:, 1:], weights, coarse_edges, coarse, counting), None, "weights: expected shape"),
        ((edges, weights.double(), coarse_edges, coarse, counting), None, "weights: expected dtype"),
        ((edges, weights, coarse_edges[1:], coarse, counting), None, "coarse_edges: expected shape"),
        ((edges, weights, coarse_edges, coarse[:, 1:], counting), None, "coarse_weights: expected shape"),
        ((edges, weights, coarse_edges, coarse, counting[1:]), None, "counting: expected shape"),
        ((edges, weights, coarse_edges, coarse, counting.int()), None, "counting: expected dtype"),
        ((edges, weights, coarse_edges, coarse, counting), 0.0, "width: expected a number"),
    ]
    for args, width, message in cases:
        with pytest.raises(BadArgument, match=message):
            interlevel(*args, width=width)


@pytest.mark.parametrize("width", [0.0, 0.03])
def test_a_wrong_reference_is_noticed(width: float) -> None:
    def of_all_rows(*args: Any) -> tuple[Tensor, Tensor]:
        return reference(args[0], args[1], args[2], args[3] * (1 + 1e-5), *args[4:])

    args = make("a warp", width)
    assert_detected(lambda: check_op("interlevel", of_all_rows, args, device="cpu", opcheck=False, **limits(width)))
