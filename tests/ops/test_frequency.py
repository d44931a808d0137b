from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_nerf.encodings import Frequency
from lightning_nerf.ops.frequency import MAX_FREQUENCIES, frequency, reference, reference_backward
from lightning_nerf.ops.library import has_kernel
from tests.ops.harness import DEVICES, assert_detected, check_op, poison_tail, rand

EPS = 2.0**-24
ATOL = 8 * EPS  # kernel and reference have the same angle; either's sine may be wrong in its last 2 bits
NAN = float("nan")


class Case(NamedTuple):
    n: int
    dims: int = 3
    n_frequencies: int = 10
    include_input: bool = True
    scale: float = 1.0

    @property
    def width(self) -> int:
        return self.dims * (2 * self.n_frequencies + self.include_input)

    def points(self, device: str = "cpu") -> Tensor:
        return rand(self.n, self.dims, seed=self.n + self.dims, low=-1.5, high=1.5).to(device)

    def grads(self, device: str = "cpu") -> Tensor:
        return rand(self.n, self.width, seed=5, low=-1.0).to(device)

    def grad_atol(self, order: int = 1) -> float:
        """2L terms of up to (2^k scale)^order: the largest makes half of the sum."""
        return 2 * (self.scale * 2.0 ** (self.n_frequencies - 1)) ** order * 2 * 16 * EPS


CASES = [
    Case(0),
    Case(1, scale=math.pi),
    Case(63),
    Case(64, include_input=False),
    Case(65, n_frequencies=4),
    Case(5000, scale=math.pi),
    Case(300, dims=1, n_frequencies=1, include_input=False),
    Case(100, dims=2, n_frequencies=16, include_input=False),
    Case(77, dims=4, n_frequencies=6, scale=0.3),
    Case(30, dims=5, n_frequencies=52),  # more sines in a row than a block has threads
    Case(9, n_frequencies=MAX_FREQUENCIES),
    Case(21, dims=70, n_frequencies=8),  # a row that passes no shared memory
]


def truth(x: Tensor, case: Case) -> Tensor:
    """By the formula, in float64 and column by column."""
    x = x.double().cpu()
    angles = [case.scale * 2**k * x[:, d] for k in range(case.n_frequencies) for d in range(case.dims)]
    columns = [x[:, d] for d in range(case.dims)] if case.include_input else []
    return torch.stack([*columns, *(a.sin() for a in angles), *(a.cos() for a in angles)], 1)


def arguments(case: Case, x: Tensor, count: Tensor | None = None) -> tuple[object, ...]:
    return x, case.n_frequencies, case.include_input, case.scale, count


def encode(case: Case, x: Tensor, count: Tensor | None = None) -> Tensor:
    return frequency(x, case.n_frequencies, include_input=case.include_input, scale=case.scale, count=count)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_matches_the_reference(device: str, case: Case) -> None:
    check_op(
        "frequency", reference, arguments(case, case.points()), device=device, differentiable=(0,),
        rtol=0.0, atol=ATOL, grad_rtol=0.0, grad_atol=case.grad_atol(), opcheck=case.n in (0, 65),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [c for c in CASES if c.n in (0, 65, 77)], ids=str)
def test_second_derivatives_match_the_reference(device: str, case: Case) -> None:
    check_op(
        "frequency_backward", reference_backward, (case.grads(), *arguments(case, case.points())), device=device,
        differentiable=(0, 1), rtol=0.0, atol=case.grad_atol(), grad_rtol=0.0, grad_atol=case.grad_atol(2),
        opcheck=case.n == 65 and has_kernel("frequency_backward", device.upper()),  # opcheck cannot see through vjp
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [c for c in CASES if c.n_frequencies <= 16], ids=str)
def test_values_and_derivatives_are_those_of_float64(device: str, case: Case) -> None:
    x = case.points(device).requires_grad_()
    out = encode(case, x)
    assert out.dtype is torch.float32
    assert out.shape == (case.n, case.width)
    # Rounding scale and scale * x moves the angle by 2 roundoffs; with scale = 1 there are none.
    moved = 0.0 if case.scale == 1.0 else 2 * EPS * case.scale * 1.5 * 2.0 ** (case.n_frequencies - 1)
    expected = truth(x.detach(), case)
    torch.testing.assert_close(out.detach().double().cpu(), expected, rtol=0, atol=ATOL + moved)
    if case.include_input:
        assert torch.equal(out[:, : case.dims], x)

    exact = x.detach().double().cpu().requires_grad_()
    (grad,) = torch.autograd.grad(out, x, case.grads(device))
    (expected,) = torch.autograd.grad(truth(exact, case), exact, case.grads().double())
    largest = 2 * case.scale * 2.0 ** (case.n_frequencies - 1)
    torch.testing.assert_close(grad.double().cpu(), expected, rtol=0, atol=case.grad_atol() + 2 * largest * moved)


@pytest.mark.parametrize("device", DEVICES)
def test_sines_of_large_angles_are_exact(device: str) -> None:
    case = Case(1000, n_frequencies=MAX_FREQUENCIES)
    x = case.points(device) * 1e3
    torch.testing.assert_close(encode(case, x)[:, 3:].double().cpu(), truth(x, case)[:, 3:], rtol=0, atol=ATOL)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [Case(200), Case(130, n_frequencies=4, include_input=False), CASES[-1]], ids=str)
@pytest.mark.parametrize("share", [-1.0, 0.0, 0.3, 1.0, 1.5])
def test_rows_behind_the_count_are_zero_and_not_read(device: str, case: Case, share: float) -> None:
    count = int(share * case.n)
    used = min(max(count, 0), case.n)
    x = poison_tail(case.points(), used, extra=0).to(device).requires_grad_()
    grads = poison_tail(case.grads(), used, extra=0).to(device)
    counts = torch.tensor([count], dtype=torch.int32, device=device)
    expected = encode(case, x[:used])
    (expected_grad,) = torch.autograd.grad(expected, x, grads[:used])
    for held in (counts, counts[0]):
        for call in (encode, lambda c, p, n: reference(*arguments(c, p, n))):
            out = call(case, x, held)
            (grad,) = torch.autograd.grad(out, x, grads)
            assert not out[used:].any()
            assert not grad[used:].any()
            torch.testing.assert_close(out[:used], expected, rtol=0, atol=ATOL)
            torch.testing.assert_close(grad[:used], expected_grad[:used], rtol=0, atol=case.grad_atol())
    check_op(
        "frequency", reference, arguments(case, x.detach(), counts), device=device, opcheck=share == 0.3,
        rtol=0.0, atol=ATOL,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_layout_in_memory_does_not_matter(device: str) -> None:
    case = Case(66)
    x, grads = case.points(device), case.grads(device)
    expected = encode(case, x)
    expected_grad = torch.ops.lightning_nerf.frequency_backward(grads, *arguments(case, x))
    buffer = torch.zeros(grads.numel() + 1, device=device)
    askew = buffer[1:].view_as(grads).copy_(grads)  # begins at no multiple of 16 bytes
    columns = grads.T.contiguous().T
    for other in (x.T.contiguous().T, x.repeat(1, 2)[:, :3], x.repeat_interleave(2, 0)[::2]):
        leaf = other.detach().requires_grad_()
        out = encode(case, leaf)
        assert torch.equal(out, expected)
        for cotangent in (askew, columns):
            (grad,) = torch.autograd.grad(out, leaf, cotangent, retain_graph=True)
            assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_converted(device: str, dtype: torch.dtype) -> None:
    case = Case(9)
    x = case.points(device).to(dtype).requires_grad_()
    out = encode(case, x)
    assert torch.equal(out, encode(case, x.float()))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.dtype is dtype


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_of_the_public_function(device: str) -> None:
    case = Case(7, n_frequencies=4, scale=math.pi)
    x, grads = case.points(device).requires_grad_(), case.grads(device)
    results = []
    for function in (encode, lambda c, p: reference(*arguments(c, p))):
        (first,) = torch.autograd.grad(function(case, x), x, grads, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    largest = 4 * case.n_frequencies * case.scale * 2.0**case.n_frequencies  # of the first derivative
    torch.testing.assert_close(*results, rtol=0, atol=largest * case.grad_atol(2))


def test_gradcheck_of_the_reference() -> None:
    count = torch.tensor(2, dtype=torch.int32)
    for case in (Case(3, n_frequencies=2, scale=math.pi), Case(3, dims=2, n_frequencies=3, include_input=False)):
        x = case.points().double().requires_grad_()
        for used in (None, count):
            assert torch.autograd.gradcheck(lambda p, c=case, u=used: reference(*arguments(c, p, u)), (x,))
            assert torch.autograd.gradgradcheck(lambda p, c=case, u=used: reference(*arguments(c, p, u)), (x,))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # torch's own, for forward mode
def test_float64_and_transforms_take_the_reference() -> None:
    case = Case(5, n_frequencies=3)
    x, encoding = case.points(), Frequency(3)
    assert torch.equal(encoding(x.double()), reference(x.double(), 3))
    torch.testing.assert_close(torch.func.vmap(encoding)(x), encoding(x), rtol=0, atol=ATOL)
    direction = rand(*x.shape, seed=4)
    _, tangent = torch.func.jvp(encoding, (x,), (direction,))
    rows = torch.autograd.functional.jacobian(encoding, x)
    torch.testing.assert_close(tangent, torch.einsum("nwmd,md->nw", rows, direction), rtol=0, atol=case.grad_atol())


def test_the_comparison_detects_another_order() -> None:
    def mutated(x: Tensor, *args: int) -> Tensor:  # axis by axis, and in each frequency by frequency
        sines = torch.arange(3, 9).view(2, 3).T.flatten()
        return reference(x, *args)[:, torch.cat([torch.arange(3), sines, sines + 6])]

    case = Case(8, n_frequencies=2)
    assert_detected(
        lambda: check_op(
            "frequency", mutated, arguments(case, case.points()), device="cpu", opcheck=False, rtol=0.0, atol=ATOL
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: expected shape \[N, D\], got \[3\]"),
        ({"x": torch.zeros(3, 3, dtype=torch.int64)}, r"x: expected dtype torch.float32 or .*, got torch.int64"),
        ({"x": torch.zeros(3, 0)}, "x: expected at least 1 column, got 0"),
        ({"n_frequencies": 0}, "n_frequencies: expected an integer from 1 to 64, got 0"),
        ({"n_frequencies": 65}, "n_frequencies: expected an integer from 1 to 64, got 65"),
        ({"scale": 0.0}, r"scale: expected a number in \(0, inf\), got 0.0"),
        ({"scale": NAN}, r"scale: expected a number in \(0, inf\), got nan"),
        ({"count": torch.tensor(1)}, "count: expected dtype torch.int32, got torch.int64"),
        ({"count": torch.tensor([1, 2], dtype=torch.int32)}, r"count: expected shape \[1\], got \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"x": torch.zeros(2, 3), "n_frequencies": 4, **change}
    with pytest.raises(ValueError, match=message):
        frequency(**options)  # pyright: ignore[reportArgumentType]
