from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_nerf import nerfacc as ours
from tests.ops.harness import DEVICES, rand

NAMES = ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"]
COUNTS = [3, 0, 1, 40, 0, 7, 130]
FORMS = ["rows", "packed_info", "indices"]


def values_of(n: int, seed: int = 1) -> Tensor:
    values = rand(n, seed=seed, low=0.6, high=1.3)
    values[rand(n, seed=seed + 1) < 0.05] = 0.0
    return values


def by_loops(name: str, values: Tensor, grad: Tensor, rays: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Result, and gradient: each derivative of a product is the product of the other factors."""
    x, g = values.double().tolist(), grad.double().tolist()
    product, exclusive = name.endswith("prod"), name.startswith("exclusive")
    out, dx = [0.0] * len(x), [0.0] * len(x)
    for ray in rays:
        for k, i in enumerate(ray):
            used = ray[: k if exclusive else k + 1]
            state = 1.0 if product else 0.0
            for j in used:
                state = state * x[j] if product else state + x[j]
            out[i] = state
            others = 1.0
            if product and 0.0 in (zeros := [x[j] for j in used]):
                lone = zeros.count(0.0) == 1
                for j in used:
                    others *= x[j] or 1.0
                for j in used:
                    dx[j] += g[i] * others if lone and x[j] == 0 else 0.0
            else:
                for j in used:
                    dx[j] += g[i] * (state / x[j] if product else 1.0)
    return torch.tensor(out).double(), torch.tensor(dx).double()


def arguments(form: str, device: str) -> tuple[Tensor, dict[str, Tensor], list[list[int]]]:
    if form == "rows":
        rows = values_of(3 * 2 * 50).view(3, 2, 50)
        return rows.to(device), {}, torch.arange(300).view(6, 50).tolist()
    ends = list(itertools.accumulate(COUNTS))
    rays = [list(range(end - count, end)) for end, count in zip(ends, COUNTS, strict=True)]
    if form == "packed_info":
        segments = torch.tensor([[end - count, count] for end, count in zip(ends, COUNTS, strict=True)])
    else:
        segments = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    return values_of(sum(COUNTS)).to(device), {form: segments.to(device)}, rays


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_result_and_gradient(device: str, name: str, form: str) -> None:
    values, segments, rays = arguments(form, device)
    values.requires_grad_()
    grad = rand(values.numel(), seed=8, low=-1.0).to(device).view(values.shape)
    out = getattr(ours, name)(values, **segments)
    assert out.shape == values.shape
    (dx,) = torch.autograd.grad(out, values, grad)
    expected, expected_dx = by_loops(name, values.detach().flatten(), grad.flatten(), rays)
    sizes = by_loops(name, values.detach().flatten(), grad.abs().flatten(), rays)
    # A rounding per term or factor, three per entry in a product's gradient, relative to what the terms' sizes sum up to.
    longest = max(map(len, rays))
    for actual, truth, size, roundings in [(out, expected, sizes[0], longest), (dx, expected_dx, sizes[1], 3 * longest)]:
        off = (actual.detach().cpu().flatten().double() - truth).abs()
        assert (off <= (roundings + 1) * 2**-24 * size).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(device: str, name: str, form: str, dtype: torch.dtype) -> None:
    values, segments, _ = arguments(form, device)
    values = (1 - 0.01 * values).to(dtype).requires_grad_()
    out = getattr(ours, name)(values, **segments)
    assert out.dtype == dtype
    (dx,) = torch.autograd.grad(out.sum(), values)
    assert dx.dtype == dtype
    wide = getattr(ours, name)(values.detach().double(), **segments)
    rtol = torch.finfo(dtype).eps * (1 if dtype != torch.float64 else 130)  # rounded once, or with each entry
    if form == "rows" and name.endswith("sum"):
        rtol *= 50  # torch's own, in whatever precision that sums
    torch.testing.assert_close(out.double(), wide, rtol=rtol, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_nothing(device: str, name: str) -> None:
    function = getattr(ours, name)
    for shape, segments in [
        ((0,), {"packed_info": torch.zeros(0, 2, dtype=torch.int64)}),
        ((0,), {"packed_info": torch.zeros(4, 2, dtype=torch.int64)}),
        ((0,), {"indices": torch.zeros(0, dtype=torch.int64)}),
        ((0,), {}),
        ((3, 0), {}),
        ((0, 5), {}),
    ]:
        values = torch.zeros(shape, device=device, requires_grad=True)
        out = function(values, **{k: v.to(device) for k, v in segments.items()})
        assert out.shape == shape
        out.sum().backward()
        assert values.grad is not None


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_in_any_order_and_with_gaps(device: str) -> None:
    values = torch.tensor([1.0, 2, 3, 4, 5, 6, 7], device=device)
    packed_info = torch.tensor([[4, 2], [0, 0], [1, 2]], dtype=torch.int32, device=device)
    assert ours.inclusive_sum(values, packed_info).tolist() == [0, 2, 5, 0, 5, 11, 0]
    assert ours.exclusive_prod(values, packed_info).tolist() == [0, 1, 2, 0, 1, 5, 0]


def test_views_and_errors() -> None:
    values, segments, _ = arguments("packed_info", "cpu")
    spread = torch.stack([values, values], 1)[:, 0]
    for name in NAMES:
        function = getattr(ours, name)
        torch.testing.assert_close(function(spread, **segments), function(values, **segments), rtol=0, atol=0)
        with pytest.raises(ValueError, match="packed_info, indices: expected at most one of them"):
            function(values, segments["packed_info"], torch.zeros(len(values), dtype=torch.int64))
        with pytest.raises(ValueError, match=r"inputs: expected shape \[N\]"):
            function(values[None], **segments)
        with pytest.raises(ValueError, match=r"inputs: expected dtype .* got torch.int64"):
            function(values.long(), **segments)
        with pytest.raises(ValueError, match=r"packed_info: expected shape \[n_rays, 2\]"):
            function(values, segments["packed_info"][0])
        with pytest.raises(ValueError, match=r"indices: expected shape \[181\], got \[180\]"):
            function(values, indices=torch.zeros(180, dtype=torch.int64))
    assert ours.inclusive_sum(torch.tensor([[1, 2], [3, 4]])).tolist() == [
        [1, 3],
        [3, 7],
    ]  # rows of integers, as torch does
