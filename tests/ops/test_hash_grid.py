from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import hash_grid as op
from lightning_nerf.ops.hash_grid import hash_grid, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, run_with_grad

EPS = 2.0**-24  # relative error of one float32 rounding
PLAIN = (None, torch.float32, False)  # of the op: no working table, float32 features, sums in any order


def grid_levels(dims: int, shape: list[tuple[int, int]]) -> tuple[Tensor, int]:
    """``levels`` and number of rows for (resolution, size) pairs; size 0: dense, all vertices."""
    rows, offset = [], 0
    for resolution, size in shape:
        size = size or (resolution + 1) ** dims
        rows.append((resolution, offset, size))
        offset += size
    return torch.tensor(rows, dtype=torch.int32), offset


def make(
    dims: int, features: int, n: int, *, shape: list[tuple[int, int]] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, a table in [-1, 1] and levels: two dense, one dense with rows to spare, two hashed."""
    levels, n_rows = grid_levels(dims, shape or [(3, 0), (5, 0), (4, 640), (19, 64), (50, 256)])
    table = rand(n_rows, features, seed=7, low=-1.0).to(dtype)
    return rand(n, dims, seed=8), table, levels


def eight_levels() -> list[tuple[int, int]]:
    return [(2, 0), (4, 0), (8, 0), (11, 512), (16, 1024), (23, 1024), (32, 1024), (45, 1024)]


def tolerances(n: int, dims: int, levels: int, features: int, resolution: int, dtype: torch.dtype) -> dict[str, float]:
    """Bounds for table and cotangents in [-1, 1].

    An output sums 2^D terms whose weights sum to 1, each weight D roundings: (D + 2^D) EPS. A table gradient sums at most n
    terms. A position gradient sums ``levels * features * 2^D`` terms, each at most ``resolution``. In a half type two
    nearly equal sums may round to neighbors: one unit in the last place.
    """
    corners = 2**dims
    half = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    terms = levels * features * corners
    return {
        "rtol": half,
        "atol": (dims + corners) * EPS,
        "grad_rtol": max(half, 4 * EPS),
        "grad_atol": max(n**0.5 * 8 * EPS, resolution * terms**0.5 * 8 * EPS),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dims", "features", "dtype"),
    [
        *((d, f, torch.float32) for d, f in itertools.product((2, 3, 4), (1, 2, 4))),
        (3, 8, torch.float32),
        (2, 1, torch.float16),
        (3, 2, torch.float16),
        (4, 4, torch.float16),
        (3, 8, torch.float16),
        (3, 2, torch.bfloat16),
    ],
)
def test_kernel_matches_the_reference(device: str, dims: int, features: int, dtype: torch.dtype) -> None:
    args = (*make(dims, features, 301, dtype=dtype), None, dtype, False)
    bounds = tolerances(301, dims, 5, features, 50, dtype)
    opcheck = (dims, features) in ((3, 2), (4, 4))
    check_op("hash_grid", reference, args, device=device, differentiable=(0, 1), opcheck=opcheck, **bounds)
    check_op("hash_grid", reference, args, device=device, differentiable=(1,), opcheck=False, **bounds)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize("n", [0, 1, 4, 7, 8, 9, 33, 128, 129, 5000])
def test_any_number_of_samples(device: str, n: int, features: int) -> None:
    args = (*make(3, features, n, shape=eight_levels()), *PLAIN)  # whole groups of levels: the wide stores
    check_op(
        "hash_grid", reference, args, device=device, differentiable=(0, 1), opcheck=n < 2,
        **tolerances(n, 3, 8, features, 45, torch.float32),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("features", "levels"), [(2, 16), (4, 8)])
def test_more_samples_than_blocks(device: str, features: int, levels: int) -> None:
    """Each CUDA block serves several tiles of samples, and the table is one of a real scene's shape."""
    shape = [(round(8 * 1.3**level), 2**12 if level > 2 else 0) for level in range(levels)]
    args = (*make(3, features, 300_001 if device == "cuda" else 2001, shape=shape), *PLAIN)
    bounds = tolerances(300_001, 3, levels, features, shape[-1][0], torch.float32)
    check_op("hash_grid", reference, args, device=device, differentiable=(1,), opcheck=False, **bounds)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_working_copy(device: str, features: int, dtype: torch.dtype) -> None:
    x, table, levels = make(3, features, 301, shape=eight_levels())
    args = (x, table, levels, table.half(), dtype, False)
    bounds = tolerances(301, 3, 8, features, 45, dtype)
    bounds["grad_rtol"] = 4 * EPS  # gradients stay in float32
    check_op("hash_grid", reference, args, device=device, differentiable=(0, 1), opcheck=features == 2, **bounds)


@pytest.mark.parametrize("device", DEVICES)
def test_values_come_from_the_working_copy_and_gradients_go_to_the_table(device: str) -> None:
    x, table, levels = (a.to(device) for a in make(3, 2, 200))
    other = rand(*table.shape, seed=9, low=-1.0).to(device).half()
    x.requires_grad_()
    table.requires_grad_()
    out = hash_grid(x, table, levels, working=other)
    assert out.dtype == torch.float16
    assert torch.equal(out, hash_grid(x, other, levels))
    # Too small and too many for float16, whose range is 6e-8 to 65504.
    small = hash_grid(x, table, levels, working=other, dtype=torch.float32)
    cotangent = rand(*small.shape, seed=10, low=-1.0).to(device)
    expected = torch.autograd.grad(hash_grid(x, table, levels), table, cotangent)[0]
    for scale in (1e-12, 1e12):
        grads = torch.autograd.grad(small, (x, table), cotangent * scale, retain_graph=True)
        torch.testing.assert_close(grads[1] / scale, expected, rtol=8 * EPS, atol=1e-5)
    expected = torch.autograd.grad(hash_grid(x, other.float(), levels), x, cotangent * scale)[0]
    torch.testing.assert_close(grads[0], expected, rtol=1e-5, atol=1e-5 * scale)
    one_cell = hash_grid(torch.full_like(x, 0.3), table, levels, working=other)
    grad = torch.autograd.grad(one_cell, table, torch.full_like(one_cell, 6e4))[0]
    assert grad.isfinite().all()
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double().sum().item(), 6e4 * 200 * 10, rtol=1e-3, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_of_any_type(device: str, dtype: torch.dtype, deterministic: bool) -> None:
    """A fused kernel may hand over gradients in a type other than the table's."""
    args = [a.to(device) for a in make(3, 4, 500, shape=eight_levels())]
    grad = rand(500, 32, seed=4, low=-1.0).to(device, dtype)
    backward = torch.ops.lightning_nerf.hash_grid_backward
    actual = backward(grad, *args, args[1].half(), True, True, deterministic)
    expected = op.reference_backward(grad.float(), *args, args[1].half(), True, True, False)
    bounds = tolerances(500, 3, 8, 4, 45, torch.float32)
    alone = op.table_gradient(grad, *args, deterministic=deterministic)
    for a, e in zip((*actual, alone), (*expected, expected[1]), strict=True):
        torch.testing.assert_close(a, e, rtol=bounds["grad_rtol"], atol=bounds["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_samples_along_rays(device: str, features: int) -> None:
    """Many neighbors share a cell and some gradients are zero: what the CUDA backward sums within a thread."""
    t = torch.linspace(0, 1, 100)[None, :, None]
    ends = rand(2, 20, 1, 3, seed=1)
    x = (ends[0] + (ends[1] - ends[0]) * t).reshape(-1, 3)
    levels, n_rows = grid_levels(3, [(2, 0), (6, 0), (16, 512), (128, 512)])
    table = rand(n_rows, features, seed=2, low=-1.0).to(device)
    cotangent = rand(len(x), 4 * features, seed=3, low=-1.0)
    cotangent[700:900] = 0
    cotangent[1000:1100:3] = 0
    cotangent[:, 3 * features :] *= (rand(len(x), 1, seed=4) < 0.1).float()
    args = (x.to(device), table, levels.to(device), *PLAIN)
    (_, actual), (_, expected) = (
        run_with_grad(f, args, (0, 1), [cotangent.to(device)]) for f in (torch.ops.lightning_nerf.hash_grid, reference)
    )
    for a, e in zip(actual, expected, strict=True):
        bounds = tolerances(len(x), 3, 4, features, 128, torch.float32)
        torch.testing.assert_close(a, e, rtol=bounds["grad_rtol"], atol=bounds["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
def test_positions_outside_are_clamped_and_have_no_gradient(device: str) -> None:
    inf, nan = float("inf"), float("nan")
    outside = torch.tensor([[-0.5, 0.3, 0.6], [0.2, 1.5, nan], [nan, nan, nan], [inf, -inf, 0.5], [1e30, 0.1, -1e-30]])
    inside = torch.tensor([[0.0, 0.3, 0.6], [0.2, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.1, 0.0]])
    _, table, levels = make(3, 2, 1)
    bounds = tolerances(5, 3, 5, 2, 50, torch.float32)
    for x in (outside, inside):
        args = (x, table, levels, *PLAIN)
        check_op("hash_grid", reference, args, device=device, differentiable=(0, 1), opcheck=False, **bounds)
    table, levels = table.to(device), levels.to(device)
    x = outside.to(device).requires_grad_()
    out = hash_grid(x, table, levels)
    torch.testing.assert_close(out, hash_grid(inside.to(device), table, levels), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), x)
    expected_nonzero = torch.tensor(
        [[False, True, True], [True, False, False], [False] * 3, [False, False, True], [False, True, False]]
    )
    assert torch.equal((grad != 0).cpu(), expected_nonzero)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_a_linear_function_is_reproduced_on_dense_levels(device: str, dims: int) -> None:
    resolution = 6
    levels, n_rows = grid_levels(dims, [(resolution, 0)])
    slope = torch.tensor([0.5, -0.25, 1.0, 2.0])[:dims]
    axes = torch.meshgrid(*[torch.arange(resolution + 1.0)] * dims, indexing="ij")
    vertices = torch.stack([a.permute(*reversed(range(dims))).flatten() for a in axes], -1)  # the first axis varies fastest
    table = (vertices @ slope)[:, None]
    x = torch.cat([rand(200, dims, seed=3), torch.zeros(1, dims), torch.ones(1, dims)])
    expected = (x * (resolution - 1) + 0.5) @ slope
    assert len(table) == n_rows
    x = x.to(device).requires_grad_()
    out = hash_grid(x, table.to(device), levels.to(device))
    torch.testing.assert_close(out[:, 0].cpu(), expected, rtol=0, atol=23 * 2**dims * EPS)  # values up to 23
    (grad,) = torch.autograd.grad(out.sum(), x)
    expected_grad = (slope * (resolution - 1)).expand_as(x).to(device)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=5 * 23 * 2**dims * EPS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_weights_sum_to_one(device: str, dims: int) -> None:
    x, table, levels = (a.to(device) for a in make(dims, 2, 500))
    out = hash_grid(x, torch.ones_like(table), levels)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=2**dims * 2 * EPS)
    ones = torch.ones_like(table).requires_grad_()
    (grad,) = torch.autograd.grad(hash_grid(x, ones, levels).sum(), ones)  # each sample hands out 1 per level and feature
    torch.testing.assert_close(grad.double().sum().item(), 500.0 * 5 * 2, rtol=1e-6, atol=0)


def test_hash_of_the_paper() -> None:
    """Rows of a hashed level, computed here with Python integers."""
    resolution, size, dims = 1000, 2**10, 4
    vertex = (13, 700, 999, 256)
    expected = 0
    for v, prime in zip(vertex, (1, 2654435761, 805459861, 3674653429), strict=True):
        expected ^= v * prime % 2**32
    levels, n_rows = grid_levels(dims, [(resolution, size)])
    x = (torch.tensor([vertex], dtype=torch.float32) - 0.5 + 1e-3) / (resolution - 1)
    out = hash_grid(x, torch.arange(n_rows, dtype=torch.float32)[:, None], levels)
    # Nearly all weight is on the lower corner; neighbors differ by less than size.
    assert abs(out.item() - expected % size) < size * 1e-2


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, table, levels = make(3, 2, 20_000, shape=[(4, 0), (9, 0), (30, 2**10), (90, 2**10), (200, 2**12)])
    cotangent = rand(len(x), 10, seed=5, low=-1.0)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs, grads = run_with_grad(
                torch.ops.lightning_nerf.hash_grid, (x, table, levels, *PLAIN), (0, 1), [cotangent]
            )
            results.append([*outputs, *grads])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_gradcheck_of_the_reference(dims: int) -> None:
    levels, n_rows = grid_levels(dims, [(2, 0), (5, 32)])
    x = rand(3, dims, seed=2).double() * 0.9 + 0.05
    table = rand(n_rows, 2, seed=3, low=-1.0).double()
    inputs = (x.requires_grad_(), table.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, t: reference(p, t, levels), inputs)
    assert torch.autograd.gradgradcheck(lambda p, t: reference(p, t, levels), inputs)


def test_only_wanted_gradients_are_computed() -> None:
    x, table, levels = make(3, 2, 10)
    grad = torch.ones(10, 10)
    backward = torch.ops.lightning_nerf.hash_grid_backward
    for for_positions, for_table in itertools.product((False, True), repeat=2):
        grads = backward(grad, x, table, levels, None, for_positions, for_table, False)
        assert [g.shape for g in grads] == [x.shape if for_positions else (0,), table.shape if for_table else (0,)]


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_the_arguments_alone(device: str) -> None:
    x, table, levels = (a.to(device) for a in make(3, 2, 50))
    x.requires_grad_()
    plain = hash_grid(x, table, levels)
    with torch.autocast(device, torch.bfloat16):
        cast = hash_grid(x, table, levels)
        half = hash_grid(x, table.to(torch.bfloat16), levels)
    assert torch.equal(plain, cast)
    assert half.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(half.float().sum(), x)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_misaligned_arguments(device: str) -> None:
    x, table, levels = (a.to(device) for a in make(3, 2, 40))
    expected = hash_grid(x, table, levels)
    flat = torch.cat([table.new_zeros(1), table.flatten()])
    shifted = flat[1:].view(table.shape)  # contiguous, but no row is aligned to its size
    for p, t, v in [(x.T.contiguous().T, table.T.contiguous().T, levels.long()), (x, shifted, levels)]:
        t = t.detach().requires_grad_()
        out = hash_grid(p, t, v)
        assert torch.equal(out, expected)
        (grad,) = torch.autograd.grad(out, t, torch.ones(1, device=device).expand(40, 10))
        torch.testing.assert_close(grad.sum().item(), 400.0, rtol=1e-5, atol=0)


def test_second_derivatives_raise() -> None:
    x, table, levels = make(3, 2, 4)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(hash_grid(x, table, levels).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"hash_grid\.reference"):
        grad.sum().backward()


@pytest.mark.parametrize("axis", range(3))
def test_the_comparison_detects_another_hash(axis: int) -> None:
    args = (*make(3, 2, 20), *PLAIN)

    def mutated(*args: Any) -> Tensor:
        primes = list(op.PRIMES)
        primes[axis] += 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(op, "PRIMES", primes)
            return reference(*args)

    bounds = tolerances(20, 3, 5, 2, 50, torch.float32)
    assert_detected(lambda: check_op("hash_grid", mutated, args, device="cpu", opcheck=False, **bounds))


def test_the_comparison_detects_another_position() -> None:
    args = (*make(3, 2, 20), *PLAIN)

    def mutated(positions: Tensor, *args: Any) -> Tensor:
        return reference(positions + 1e-5, *args)

    bounds = tolerances(20, 3, 5, 2, 50, torch.float32)
    assert_detected(lambda: check_op("hash_grid", mutated, args, device="cpu", opcheck=False, **bounds))


def test_the_comparison_detects_a_gradient_rounded_to_the_working_type() -> None:
    x, table, levels = make(3, 2, 20)
    args = (x, table, levels, table.half(), torch.float32, False)
    bounds = tolerances(20, 3, 5, 2, 50, torch.float32)

    def check(function: Any) -> None:
        check_op("hash_grid", function, args, device="cpu", differentiable=(1,), opcheck=False, **bounds)

    def mutated(positions: Tensor, table: Tensor, levels: Tensor, working: Tensor, *args: Any) -> Tensor:
        return reference(positions, table.half(), levels, None, *args)  # the same features

    check(reference)
    assert_detected(lambda: check(mutated))


def test_a_level_outside_of_the_table_is_an_error() -> None:
    x, table, levels = make(3, 2, 100)
    with pytest.raises((RuntimeError, IndexError)):
        hash_grid(x, table[:-1], levels)


def test_bad_arguments_are_named() -> None:
    x, table, levels = make(3, 2, 4)
    for arguments, message in [
        ((x.double(), table, levels), r"positions: expected dtype torch.float32, got torch.float64"),
        ((x[0], table, levels), r"positions: expected shape \[N, D\], got \[3\]"),
        ((x[:, :1], table, levels), "positions: expected 2, 3 or 4 dimensions, got 1"),
        ((x, table.double(), levels), "table: expected dtype"),
        ((x, table[:, :1].expand(-1, 3), levels), "table: expected 1, 2, 4 or 8 features, got 3"),
        ((x, table, levels.float()), "levels: expected dtype torch.int32 or torch.int64, got torch.float32"),
        ((x, table, levels[:, :2]), r"levels: expected shape \[L, 3\], got \[5, 2\]"),
        ((x, table, levels.to("meta")), "levels: expected a tensor on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            hash_grid(*arguments)
    for keywords, message in [
        ({"working": table.double()}, "working: expected dtype"),
        ({"working": table[1:].half()}, rf"working: expected shape \[{len(table)}, 2\]"),
        ({"working": table.half().to("meta")}, "working: expected a tensor on cpu"),
        ({"dtype": torch.float64}, "dtype: expected torch.float32 or torch.float16 or torch.bfloat16, got torch.float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            hash_grid(x, table, levels, **keywords)
