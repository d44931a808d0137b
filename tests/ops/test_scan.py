from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.scan import product_backward_reference, reference, segmented_product, segmented_sum
from tests.ops.harness import DEVICES, assert_detected, check_op, generator, ragged_offsets, rand, run_with_grad, to

OP = torch.ops.lightning_nerf.scan
INF, NAN = float("inf"), float("nan")
KINDS = list(itertools.product([False, True], repeat=3))  # product, exclusive, reverse
IDS = ["-".join(n for n, b in zip(("product", "exclusive", "reverse"), k, strict=True) if b) or "sum" for k in KINDS]
LAYOUTS = ["offsets", "packed_info", "ray_indices"]

COUNTS = {
    "no segments": [],
    "one": [5],
    "empty ones": [0, 0, 0],
    "ragged": [0, 3, 1, 0, 17, 64, 5, 0, 2, 100, 33, 0],
    "short": [i % 5 for i in range(70)],  # each mean length has its own number of lanes on CUDA
    "medium": [(7 * i) % 21 for i in range(40)],
    "longer": [(7 * i) % 61 for i in range(20)],
    "long": [1000, 0, 1, 128, 127, 129],
}


def segments_of(counts: list[int], layout: str) -> tuple[Tensor, list[tuple[int, int]], int]:
    """Segments, their bounds, and the number of entries: packed ones come in no order, with gaps; others have a tail."""
    if layout == "packed_info":
        begins = [2 + begin + 3 * i for i, begin in enumerate(itertools.accumulate([0, *counts[:-1]]))] if counts else []
        order = torch.randperm(len(counts), generator=generator(0))
        packed = torch.tensor(list(zip(begins, counts, strict=True)), dtype=torch.int64).view(-1, 2)[order]
        return packed, [(b, b + c) for b, c in zip(begins, counts, strict=True)], sum(counts) + 3 * len(counts) + 4
    offsets = ragged_offsets(counts)
    bounds = list(itertools.pairwise(offsets.tolist()))
    if layout == "offsets":
        return offsets, bounds, sum(counts) + 7
    keys = torch.tensor([3, 3, 1, 7])[torch.arange(len(counts)) % 4] + torch.arange(len(counts)) // 4 % 2
    keys = keys.repeat_interleave(torch.tensor(counts, dtype=torch.int64))  # neither sorted nor all different
    changes = [0, *((keys[1:] != keys[:-1]).nonzero()[:, 0] + 1).tolist(), len(keys)]
    return keys, list(itertools.pairwise(changes)), len(keys)


def values_of(n: int, product: bool, seed: int = 1) -> Tensor:
    """Factors about 1, some of them 0; summands of both signs."""
    values = rand(n, seed=seed, low=0.7, high=1.25) if product else rand(n, seed=seed, low=-1.0)
    if product:
        values[rand(n, seed=seed + 1) < 0.02] = 0.0
    return values


def by_loops(
    values: Tensor, grad: Tensor, bounds: list[tuple[int, int]], product: bool, exclusive: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Result and gradient in Python floats, by the definition: a product's derivatives are products of the others."""
    x, g = values.tolist(), grad.tolist()
    out, dx = [0.0] * len(x), [0.0] * len(x)
    for begin, end in bounds:
        places = list(range(begin, end))
        if reverse:
            places.reverse()
        for k, i in enumerate(places):
            used = places[: k if exclusive else k + 1]
            total = 1.0 if product else 0.0
            for j in used:
                total = total * x[j] if product else total + x[j]
            out[i] = total
            for j in used:
                others = 1.0
                for other in used if product else []:
                    others *= 1.0 if other == j else x[other]
                dx[j] += g[i] * others
    return torch.tensor(out, dtype=torch.float64), torch.tensor(dx, dtype=torch.float64)


def assert_rounded(actual: Tensor, expected: Tensor, magnitude: Tensor, roundings: int) -> None:
    """Each entry is off by at most so many roundings (2^-24) of the sum of its terms' sizes, or of the smallest float."""
    bound = roundings * 2**-24 * magnitude.double() + 1e-38
    off = (actual.double() - expected.double()).abs()
    assert (off <= bound).all(), f"{int((off > bound).sum())} entries, up to {(off / bound).max():.2g} of the bound"


def compare(device: str, values: Tensor, segments: Tensor, kind: tuple[bool, bool, bool], longest: int) -> None:
    """Result and gradient against the reference in float64, entry by entry."""
    values, segments, grad = to(device, (values, segments, rand(len(values), seed=9, low=-1.0)))
    doubles, sizes = values.double(), values.double().abs()
    outputs, grads = run_with_grad(OP, (values, segments, *kind), (0,), [grad])
    truth, true_grads = run_with_grad(reference, (doubles, segments, *kind), (0,), [grad.double()])
    largest, largest_grads = run_with_grad(reference, (sizes, segments, *kind), (0,), [grad.double().abs()])
    # A sum takes a rounding per term at most, a product per factor; a product's gradient three per entry: the product
    # before it, the products after it and their sum.
    assert_rounded(outputs[0], truth[0], largest[0], longest + 1)
    assert_rounded(grads[0], true_grads[0], largest_grads[0], 3 * longest + 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("counts", [[], [0], [4], [3, 0, 1, 6, 2]])
def test_the_reference_is_the_definition(counts: list[int], kind: tuple[bool, bool, bool], layout: str) -> None:
    segments, bounds, n = segments_of(counts, layout)
    values, grad = values_of(n, kind[0]).double(), rand(n, seed=4).double()
    if n > 12:
        values[[5, 8, 9]] = 0.0
    outputs, grads = run_with_grad(reference, (values, segments, *kind), (0,), [grad])
    expected, expected_grad = by_loops(values, grad, bounds, *kind)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(grads[0], expected_grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_kernel_equals_the_reference(device: str, counts: list[int], kind: tuple[bool, bool, bool], layout: str) -> None:
    segments, bounds, n = segments_of(counts, layout)
    values = values_of(n, kind[0])
    longest = max([e - b for b, e in bounds], default=0)
    compare(device, values, segments, kind, longest)
    if len(counts) in (0, 12):
        # Sums are of up to `longest` terms of size 1; products here of up to 100 factors below 1.25, of which the largest
        # of the seed is below 1.25^20, and their gradient sums up to 100 such.
        largest = 1.25**20 if kind[0] else longest + 1
        close = {"rtol": 0.0, "atol": (longest + 1) * 2**-24 * largest, "grad_atol": 3 * longest**2 * 2**-24 * largest}
        check_op("scan", reference, (values, segments, *kind), device=device, differentiable=(0,), **close)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [(False, False, False), (False, True, True), (True, True, False), (True, False, True)])
@pytest.mark.parametrize("counts", [[20_000, 3, 9_001], [(i * 37) % 41 for i in range(1000)], [1] * 9000])
def test_many_entries(device: str, counts: list[int], kind: tuple[bool, bool, bool], layout: str) -> None:
    segments, bounds, n = segments_of(counts, layout)
    values = values_of(n, kind[0])
    if kind[0]:
        values = 1 - 1e-3 * values  # products that neither vanish nor overflow
    compare(device, values, segments, kind, max(e - b for b, e in bounds))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", list(itertools.product([False, True], repeat=2)))
def test_backward_equals_its_reference(device: str, kind: tuple[bool, bool], layout: str) -> None:
    segments, bounds, n = segments_of([3, 0, 1, 40, 17], layout)
    values, grad = 0.8 * values_of(n, True), rand(n, seed=3, low=-1.0)
    products = reference(values, segments, True, *kind)
    # Up to `longest` terms below 1, each rounded three times.
    longest = max(e - b for b, e in bounds)
    close = {"rtol": 0.0, "atol": 3 * (longest + 1) * longest * 2**-24}
    args = (grad, values, products, segments, *kind)
    check_op("scan_product_backward", product_backward_reference, args, device=device, **close)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_products_gradient_is_exact_at_zeros(device: str, exclusive: bool, reverse: bool) -> None:
    """Small integers: every product and sum is exact, so nothing may differ."""
    values = torch.tensor([2.0, 0, 3, 5, 0, 0, 7, 2, 0, 0, 1, 3, 4, 2])
    grad = torch.tensor([1.0, 2, -1, 3, 1, 1, 2, 5, -4, 1, 2, 1, 1, 3])
    bounds = [(0, 4), (4, 7), (7, 9), (9, 10), (10, 14)]
    offsets = torch.tensor([0, 4, 7, 9, 10, 14], dtype=torch.int32)
    args = to(device, (values, offsets, True, exclusive, reverse))
    outputs, grads = run_with_grad(OP, args, (0,), [grad.to(device)])
    expected, expected_grad = by_loops(values, grad, bounds, True, exclusive, reverse)
    assert outputs[0].tolist() == expected.tolist()
    assert grads[0].tolist() == expected_grad.tolist()
    assert (expected_grad[values == 0] != 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_entries_of_no_segment_give_zero_and_are_never_read(
    device: str, kind: tuple[bool, bool, bool], layout: str
) -> None:
    segments, bounds, n = segments_of(COUNTS["ragged"], layout)
    free = torch.ones(n, dtype=torch.bool)
    for begin, end in bounds:
        free[begin:end] = False
    assert free.any() == (layout != "ray_indices")
    values, grad = values_of(n, kind[0]), rand(n, seed=3, low=-1.0)
    poisoned, poisoned_grad = (torch.where(free, NAN, v) for v in (values, grad))
    clean = run_with_grad(OP, to(device, (values, segments, *kind)), (0,), [grad.to(device)])
    dirty = run_with_grad(OP, to(device, (poisoned, segments, *kind)), (0,), [poisoned_grad.to(device)])
    for (a,), (b,) in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert (b.cpu()[free] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("strange", [NAN, INF, -INF])
def test_a_strange_value_stays_in_its_segment(
    device: str, kind: tuple[bool, bool, bool], layout: str, strange: float
) -> None:
    segments, bounds, n = segments_of(COUNTS["ragged"], layout)
    begin, end = next((b, e) for b, e in bounds if e - b >= 17)
    values, grad = values_of(n, kind[0]), rand(n, seed=3, low=-1.0)
    other = values.clone()
    other[begin + 8] = strange
    clean = run_with_grad(OP, to(device, (values, segments, *kind)), (0,), [grad.to(device)])
    dirty = run_with_grad(OP, to(device, (other, segments, *kind)), (0,), [grad.to(device)])
    for (a,), (b,) in zip(clean, dirty, strict=True):
        outside = torch.ones(n, dtype=torch.bool)
        outside[begin:end] = False
        torch.testing.assert_close(a.cpu()[outside], b.cpu()[outside], rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_loss_does_not_see_has_gradient_zero(device: str) -> None:
    """Even behind a product that overflowed, where the chain rule would say infinity times 0."""
    values = torch.tensor([1e30, 1e30, 2.0, NAN, 3.0], device=device)
    grad = torch.tensor([1.0, 0, 0, 0, 0], device=device)
    offsets = torch.tensor([0, 5], dtype=torch.int32, device=device)
    (out,), (dx,) = run_with_grad(OP, (values, offsets, True, False, False), (0,), [grad])
    assert out[:3].tolist() == [values[0].item(), INF, INF]
    assert dx.tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_segments_beyond_the_memory_are_cut_off(device: str) -> None:
    """The op's own promise: the public functions refuse them on a CPU, and cannot look on CUDA."""
    values = torch.arange(1.0, 11, device=device)
    packed_info = torch.tensor([[-3, 5], [8, 90], [40, 2], [5, -2], [4, 2]], device=device)
    expected = [1, 3, 0, 0, 5, 11, 0, 0, 9, 19]
    assert OP(values, packed_info, False, False, False).tolist() == expected
    offsets = torch.tensor([0, 4, 90], dtype=torch.int32, device=device)
    assert OP(values, offsets, False, False, False)[[0, 3, 4, 9]].tolist() == [1, 10, 5, 45]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_of_the_reference(kind: tuple[bool, bool, bool], layout: str) -> None:
    segments, _, n = segments_of([0, 3, 1, 4], layout)
    values = values_of(n, True).double()
    values[3] = values[n - 4] = 0.0
    inputs = (values.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: reference(x, segments, *kind), inputs)
    assert torch.autograd.gradgradcheck(lambda x: reference(x, segments, *kind), inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [segmented_sum, segmented_product])
def test_second_derivatives(device: str, function: Callable[..., Tensor]) -> None:
    offsets = ragged_offsets([3, 0, 5]).to(device)
    second = []
    for dtype in (torch.float32, torch.float64):
        x = values_of(8, True).to(device, dtype).requires_grad_()
        weights = rand(8, seed=5).to(device, dtype).requires_grad_()
        loss = (function(x, offsets=offsets).square() * weights).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second.append(torch.autograd.grad((first * torch.arange(1, 9, device=device)).sum(), (x, weights)))
    for a, b in zip(*second, strict=True):
        # Sums of up to 8^3 terms of size about 8 * 2 * 1.25^5; a rounding for each factor and term of the chain.
        torch.testing.assert_close(a.double(), b, rtol=100 * 2**-24, atol=100 * 2**-24)
        assert (b != 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [segmented_sum, segmented_product])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(device: str, function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    offsets = ragged_offsets(COUNTS["ragged"]).to(device)
    values = values_of(int(offsets[-1]), function is segmented_product).to(device, dtype).requires_grad_()
    out = function(values, offsets=offsets, exclusive=True)
    assert out.dtype == dtype
    (grad,) = torch.autograd.grad(out.sum(), values)
    assert grad.dtype == dtype
    exact = values.detach().to(torch.float32 if dtype != torch.float64 else dtype)
    expected = function(exact, offsets=offsets, exclusive=True).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [segmented_sum, segmented_product])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_accepted(device: str, function: Callable[..., Tensor], layout: str) -> None:
    segments, _, n = segments_of(COUNTS["ragged"], layout)
    values = values_of(n, True)
    values, segments = to(device, (values, segments))
    spread, spread_segments = (torch.stack([v, v], v.ndim)[..., 0] for v in (values, segments))
    assert not spread_segments.is_contiguous()
    out = function(spread, **{layout: spread_segments})
    torch.testing.assert_close(out, function(values, **{layout: segments}), rtol=0, atol=0)
    (a,), (b,) = (
        torch.autograd.grad(function(x := values.clone().requires_grad_(), **{layout: segments}), x, g)
        for g in (torch.ones_like(values), torch.ones(1, device=device).expand(n))
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_nothing_gives_nothing_with_a_gradient(device: str, counts: list[int], layout: str) -> None:
    segments, _, n = segments_of(counts, layout)
    for function in (segmented_sum, segmented_product):
        values = torch.full((n,), NAN, device=device, requires_grad=True)
        out = function(values, **{layout: segments.to(device)})
        assert out.tolist() == [0] * n
        out.sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [0] * n


def test_int32_indices_are_runs_too() -> None:
    values = torch.tensor([1.0, 2, 3, 4, 5])
    for dtype in (torch.int32, torch.int64):
        indices = torch.tensor([4, 4, 2, 4, 4], dtype=dtype)
        assert segmented_sum(values, ray_indices=indices).tolist() == [1, 3, 3, 4, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_number_of_threads(layout: str) -> None:
    segments, _, n = segments_of([(11 * i) % 23 for i in range(1000)] + [9000, 5], layout)

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            runs = (run_with_grad(OP, (values_of(n, k[0]), segments, *k), (0,), [rand(n, seed=3)]) for k in KINDS)
            return [tensor for outputs, grads in runs for tensor in (*outputs, *grads)]
        finally:
            torch.set_num_threads(before)

    for a, b in zip(run(1), run(2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_synchronizes(layout: str) -> None:
    segments, _, n = segments_of(COUNTS["ragged"], layout)
    segments = segments.cuda()
    for function, dtype in itertools.product((segmented_sum, segmented_product), (torch.float32, torch.float64)):
        values = values_of(n, True).to("cuda", dtype).requires_grad_()
        torch.cuda.set_sync_debug_mode("error")
        try:
            function(values, **{layout: segments}, exclusive=True).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mutation", ["inclusive for exclusive", "segments run together"])
def test_the_comparison_detects(mutation: str) -> None:
    def mutated(values: Tensor, segments: Tensor, product: bool, exclusive: bool, reverse: bool) -> Tensor:
        if mutation == "inclusive for exclusive":
            return reference(values, segments, product, not exclusive, reverse)
        return reference(values, segments[[0, -1]], product, exclusive, reverse)

    args = (torch.tensor([2.0, 0, 3, 1, 1, 0, 2]), ragged_offsets([3, 4]), True, True, False)

    def check(truth: Callable[..., Any]) -> None:
        check_op("scan", truth, args, device="cpu", differentiable=(0,), rtol=0, atol=0, opcheck=False)  # small integers

    check(reference)
    assert_detected(lambda: check(mutated))


def test_bad_arguments_are_named() -> None:
    values, offsets = torch.ones(5), ragged_offsets([2, 3])
    with pytest.raises(ValueError, match=r"values: expected shape \[N\], got \[5, 1\]"):
        segmented_sum(values[:, None], offsets=offsets)
    with pytest.raises(ValueError, match=r"values: expected dtype .* got torch.int64"):
        segmented_sum(values.long(), offsets=offsets)
    with pytest.raises(ValueError, match="expected exactly one of them, got 0"):
        segmented_product(values)
    with pytest.raises(ValueError, match="expected exactly one of them, got 2"):
        segmented_product(values, offsets=offsets, ray_indices=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"offsets: expected dtype torch.int32, got torch.int64"):
        segmented_sum(values, offsets=offsets.long())
    with pytest.raises(ValueError, match=r"offsets: expected shape \[R \+ 1\]"):
        segmented_sum(values, offsets=offsets[:0])
    with pytest.raises(ValueError, match=r"ray_indices: expected shape \[5\], got \[4\]"):
        segmented_sum(values, ray_indices=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"packed_info: expected shape \[R, 2\], got \[2\]"):
        segmented_sum(values, packed_info=torch.tensor([0, 2]))
    for bad in ([[0, 6]], [[-1, 2]], [[2, -1]]):
        with pytest.raises(ValueError, match="packed_info: expected begins and counts of segments within 5 entries"):
            segmented_sum(values, packed_info=torch.tensor(bad))
    with pytest.raises(ValueError, match="packed_info: expected segments that do not overlap"):
        segmented_sum(values, packed_info=torch.tensor([[3, 2], [0, 4]]))
    for empty in ([[0, 3], [1, 0], [9, 0], [3, 2]], [[-4, 0], [0, 3], [3, 2], [9, 0]]):  # wherever they lie
        assert segmented_sum(values, packed_info=torch.tensor(empty)).tolist() == [1, 2, 3, 1, 2]
