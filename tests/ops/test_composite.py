from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import composite_reference as module
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.composite_reference import reference
from tests.ops.harness import (
    DEVICES,
    assert_detected,
    check_op,
    poison_tail,
    ragged_offsets,
    rand,
    run_with_grad,
    to,
)

Args = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
OP = torch.ops.lightning_nerf.composite
DIFFERENTIABLE = (0, 1)  # densities, channels
INF, NAN = float("inf"), float("nan")

COUNTS = {
    "no rays": [],
    "one ray": [5],
    "rays without samples": [0, 0, 0],
    "ragged": [0, 3, 1, 0, 17, 64, 5, 0, 2, 100, 33, 0],
    "short": [i % 5 for i in range(70)],
    "medium": [(7 * i) % 31 for i in range(40)],
    "long": [1000, 0, 1],
}


def make(counts: list[int], n_channels: int = 3, *, opacity: float = 3.0, seed: int = 0) -> Args:
    """Rays of the given optical depth, whatever their length; samples with gaps between them and t in [0, 4)."""
    n, offsets = sum(counts), ragged_offsets(counts)
    steps = torch.cat([torch.full((c,), 4.0 / c) for c in counts if c] or [torch.zeros(0)])
    first = torch.cat([torch.arange(c) for c in counts]) if counts else torch.zeros(0)
    t_starts = (first + 0.3 * rand(n, seed=seed)) * steps
    t_ends = t_starts + steps * rand(n, seed=seed + 1, low=0.1, high=0.7)
    densities = rand(n, seed=seed + 2, high=opacity)
    return densities, rand(n, n_channels, seed=seed + 3, low=-1), t_starts, t_ends, offsets


def full(args: Any, eps: float = 0.0, background: Tensor | None = None, *, wanted: bool = True) -> tuple[Any, ...]:
    """The op's arguments; ``wanted``: weights, trans and alphas are returned too."""
    return (*args, eps, False, False, wanted, wanted, wanted, background)


def tolerance(args: Args) -> dict[str, float]:
    """Of the order of n roundings, which add like a random walk: six of its standard deviations (of half a unit, 2^-24).

    Values are up to 1 (channels and values per sample) or 4 (depth). The gradient of a density sums up to C + 6 such terms,
    and 4 for each of trans and alphas: a sample's length times a cotangent for each sample behind it.
    """
    longest = int((args[4][1:] - args[4][:-1]).max()) if args[4].shape[0] > 1 else 1
    walk = 6 * 2**-24 * math.sqrt(longest + 4)
    return {"rtol": walk, "atol": 4 * walk, "grad_rtol": walk, "grad_atol": walk * (args[1].shape[1] + 14)}


def transmittance(args: Args) -> Tensor:
    """T_i [N] by a loop in float64, independent of everything tested."""
    densities, _, t_starts, t_ends, offsets = (a.double() for a in args)
    result = torch.ones_like(densities)
    for begin, end in zip(offsets[:-1].int().tolist(), offsets[1:].int().tolist(), strict=True):
        for i in range(begin + 1, end):
            result[i] = result[i - 1] * torch.exp(-densities[i - 1] * (t_ends[i - 1] - t_starts[i - 1]))
    return result


def compare(device: str, args: Args, eps: float = 0.0, *, opcheck: bool = False) -> None:
    """Kernel against reference, values per sample included."""
    close, differentiable = tolerance(args), DIFFERENTIABLE if args[1].numel() else (0,)
    check_op(
        "composite",
        reference,
        full(args, eps),
        device=device,
        differentiable=differentiable,
        opcheck=opcheck,
        **close,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 20])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_kernel_equals_the_reference(device: str, counts: list[int], n_channels: int) -> None:
    args = make(counts, n_channels)
    opcheck = n_channels == 3 and len(counts) in (0, 12)
    compare(device, args, opcheck=opcheck)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [0, 1, 2, 3, 4, 5, 8, 31, 32])
@pytest.mark.parametrize("mean", [2, 12, 60, 130])  # samples per ray: each has its own number of lanes on CUDA
def test_any_number_of_channels(device: str, n_channels: int, mean: int) -> None:
    args = make([mean - 1, 0, mean + 1, mean, 3 * mean, 0, mean], n_channels)
    compare(device, args)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 7])
@pytest.mark.parametrize("eps", [0.5, 1e-2, 1e-4])
@pytest.mark.parametrize("counts", [COUNTS["ragged"], COUNTS["short"], COUNTS["medium"], [700, 3]])
def test_early_termination_is_exact_per_sample(device: str, counts: list[int], eps: float, n_channels: int) -> None:
    args = make(counts, n_channels, opacity=12.0, seed=5)
    seen = transmittance(args)
    # Off by at most 3 roundings per sample in front: no sample here is nearer to the threshold, so counts must be equal.
    assert (seen / eps - 1).abs().min() > 3 * 2**-24 * 700
    compare(device, args, eps)
    out = composite(*to(device, args), early_stop_eps=eps, return_weights=True)
    bounds = args[4].tolist()
    expected = [int((seen[b:e] >= eps).sum()) for b, e in itertools.pairwise(bounds)]
    assert out.n_samples.tolist() == expected
    assert sum(expected) < len(seen)
    assert out.weights is not None
    assert (out.weights.cpu()[seen < eps] == 0).all()


def test_an_opaque_sample_ends_the_ray_behind_it() -> None:
    args = (torch.full((4,), INF), torch.ones(4, 1), torch.arange(4.0), torch.arange(4.0) + 1, ragged_offsets([4]))
    assert composite(*args, early_stop_eps=1e-6).n_samples.tolist() == [1]
    assert composite(*args).n_samples.tolist() == [4]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 9])
@pytest.mark.parametrize("counts", [*COUNTS.values()], ids=COUNTS.keys())
def test_twice_the_capacity_and_a_poisoned_tail_change_nothing(device: str, counts: list[int], n_channels: int) -> None:
    args = make(counts, n_channels)
    n = args[0].shape[0]
    larger = (*(poison_tail(a, n, extra=n + 7) for a in args[:4]), args[4])
    shapes = [(len(counts), n_channels), (len(counts),), (len(counts),), None, (n,), (n,), (n,)]
    cotangents = [None if s is None else rand(*s, seed=9 + i, low=-1).to(device) for i, s in enumerate(shapes)]
    poisoned = [*cotangents[:4], *(poison_tail(c, n, extra=n + 7) for c in cotangents[4:])]  # type: ignore[arg-type]
    small, small_grads = run_with_grad(OP, full(to(device, args)), DIFFERENTIABLE, cotangents)
    large, large_grads = run_with_grad(OP, full(to(device, larger)), DIFFERENTIABLE, poisoned)
    close = tolerance(args)  # not equal bits: on CUDA the number of lanes per ray follows from N and R
    for a, b in zip([*large, *large_grads], [*small, *small_grads], strict=True):
        if b.shape[:1] == (n,) and a.shape[0] == 2 * n + 7:
            assert (a[n:] == 0).all()
            a = a[:n]
        torch.testing.assert_close(a, b, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 6])
def test_strange_densities_are_defined(device: str, n_channels: int) -> None:
    """Infinite, saturated, zero, negative and NaN densities, empty intervals; void samples with NaN channels."""
    densities = torch.tensor([1.0, NAN, -2.0, 0.0, 3.0, -INF, 1e30, 1.0, 2.0, INF, 5.0, 0.5, INF, 2.0, 3e38, INF, 1.0])
    n = densities.shape[0]
    t_starts = torch.arange(n) * 0.1
    lengths = torch.full((n,), 0.1)
    lengths[11:14] = torch.tensor([0.0, 0.0, -0.1])  # among them an infinite density
    args = (densities, rand(n, n_channels, seed=1), t_starts, t_starts + lengths, ragged_offsets([2, 0, 4, 5, 5, 1]))
    void = ~(densities >= 0) | (lengths <= 0)
    args[1][void] = NAN
    compare(device, args)
    cotangents = [torch.ones(6, n_channels), torch.ones(6), torch.ones(6), None, *torch.ones(3, n)]
    cotangents[4][void] = NAN
    cotangents[6][void] = NAN
    outputs, grads = run_with_grad(OP, full(to(device, args)), DIFFERENTIABLE, to(device, cotangents))
    assert all(o.isfinite().all() for o in [*outputs, *grads])
    assert all((g.cpu()[void] == 0).all() for g in grads)
    weights = outputs[4].cpu()
    assert (weights[void] == 0).all()
    assert weights[6:11].tolist() == [1, 0, 0, 0, 0]  # exactly
    assert outputs[1].tolist()[3:5] == [1, 1]
    assert outputs[3].tolist() == [2, 0, 4, 5, 5, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_hidden_samples_get_no_rounding_noise_as_gradient(device: str) -> None:
    """A density's gradient is accurate relative to the light that reaches it, not to the ray's total."""
    args = make([90], opacity=40.0)
    doubles = tuple(a.double() if a.is_floating_point() else a for a in args)
    grads = []
    for function, inputs in ((OP, to(device, args)), (reference, doubles)):
        ones = [torch.ones(1, 3).to(inputs[0]), torch.ones(1).to(inputs[0]), *[None] * 5]
        grads.append(run_with_grad(function, full(inputs, wanted=False), DIFFERENTIABLE, ones)[1][0].cpu())
    seen = transmittance(args)
    assert seen[-1] < 1e-12
    # The random walk of `tolerance`, for a gradient of up to delta (C + 1) per unit of transmittance.
    bound = tolerance(args)["rtol"] * 8 * (args[3] - args[2]) * seen
    assert ((grads[0] - grads[1]).abs() <= bound + 1e-37).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counts", [COUNTS["ragged"], COUNTS["long"]])
def test_weights_and_final_transmittance_sum_to_one(device: str, counts: list[int]) -> None:
    args = make(counts)
    out = composite(*to(device, args), return_weights=True)
    optical_depth = (args[0] * (args[3] - args[2])).double()
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    total = torch.zeros(len(counts)).double().index_add(0, owner, optical_depth)
    assert out.weights is not None
    summed = torch.zeros(len(counts)).double().index_add(0, owner, out.weights.cpu().double())
    close = {"rtol": 0.0, "atol": tolerance(args)["rtol"]}
    torch.testing.assert_close(summed + torch.exp(-total), torch.ones_like(total), **close)
    torch.testing.assert_close(out.opacity.cpu().double(), summed, **close)
    assert ((out.opacity >= 0) & (out.opacity <= 1)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_splitting_a_sample_changes_nothing(device: str) -> None:
    densities, channels, t_starts, t_ends, offsets = args = make(COUNTS["ragged"])
    middle = t_starts + 0.3 * (t_ends - t_starts)
    twice = [a.repeat_interleave(2, 0) for a in (densities, channels)]
    times = [torch.stack(pair, 1).flatten() for pair in ((t_starts, middle), (middle, t_ends))]
    whole, split = composite(*to(device, args)), composite(*to(device, [*twice, *times, 2 * offsets]))
    # Ends that round: t up to 4 has half a unit of 2^-22, times density 3.
    close = {"rtol": 0.0, "atol": 3 * tolerance(args)["rtol"]}
    torch.testing.assert_close(split.channels, whole.channels, **close)
    torch.testing.assert_close(split.opacity, whole.opacity, **close)


def test_the_comparison_detects_inclusive_transmittance() -> None:
    exclusive = module._transmittance

    def inclusive(alphas_given: bool, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        before, alpha = exclusive(alphas_given, *arguments)
        return before * (1 - alpha), alpha

    def mutated(*args: Any) -> Any:
        with mock.patch.object(module, "_transmittance", inclusive):
            return reference(*args)

    args = make(COUNTS["ragged"])

    def check(truth: Callable[..., Any]) -> None:
        check_op("composite", truth, full(args, wanted=False), device="cpu", opcheck=False, **tolerance(args))

    check(reference)
    assert_detected(lambda: check(mutated))


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_gradcheck_of_the_reference(eps: float) -> None:
    densities, channels, t_starts, t_ends, offsets = make([0, 4, 1, 7], 2)
    doubles = [a.double() for a in (densities + 0.1, channels, t_starts, t_ends)]

    def floats(densities: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        out = reference(*full((densities, channels, doubles[2], doubles[3], offsets), eps))
        return (*out[:3], *out[4:])

    inputs = tuple(a.requires_grad_() for a in doubles[:2])
    assert torch.autograd.gradcheck(floats, inputs)
    assert torch.autograd.gradgradcheck(floats, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_second_derivatives_are_those_of_float64(device: str, eps: float) -> None:
    """Of densities, channels and background through every output; NerfAcc's batched path has them in float32."""
    *args, offsets = make([0, 4, 1, 7], opacity=2.0)
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [a.to(device, dtype).requires_grad_() for a in (*args[:2], rand(3, seed=9))]
        intervals = [a.to(device) for a in (*args[2:], offsets)]
        wanted = {"return_weights": True, "return_trans": True, "return_alphas": True}
        out = composite(*inputs[:2], *intervals, early_stop_eps=eps, background=inputs[2], **wanted)
        loss = sum(o.square().sum() for o in out if o is not None and o.is_floating_point())
        first = torch.autograd.grad(loss, inputs, create_graph=True)  # type: ignore[arg-type]
        found.append([*(g.detach() for g in first), *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])  # type: ignore[arg-type]
    for single, double in zip(*found, strict=True):
        assert double.any()
        # Sums of up to 12 samples, squared twice, through 3 channels and 6 other outputs.
        torch.testing.assert_close(
            single.double(), double, rtol=12 * 9 * 2**-24, atol=12 * 9 * 2**-24 * float(double.abs().max())
        )


def test_the_derivative_of_the_op_itself_is_taken_once() -> None:
    densities, channels, t_starts, t_ends, offsets = make([3])
    densities.requires_grad_()
    none = [None] * 6
    n_samples = torch.tensor([3], dtype=torch.int32)
    grads = torch.ops.lightning_nerf.composite_backward(
        torch.ones(1, 3), *none[1:], densities, channels, t_starts, t_ends, offsets, n_samples, None, False, False, True
    )
    with pytest.raises(NotImplementedError, match=r"composite.* differentiable any number of times"):
        grads[0].sum().backward()


def test_t_gets_no_gradient() -> None:
    densities, channels, t_starts, t_ends, offsets = make([3, 2])
    for function in (OP, reference):
        inputs = [a.clone().requires_grad_() for a in (densities, channels, t_starts, t_ends)]
        sum(o.sum() for o in function(*full((*inputs, offsets)))).backward()
        assert [i.grad is None for i in inputs] == [False, False, True, True]


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_requires_grad_gets_it(device: str) -> None:
    args = to(device, make(COUNTS["ragged"]))
    for wanted in (0, 1):
        both = [a.clone().requires_grad_() for a in args[:2]]
        only = [a.clone().requires_grad_(i == wanted) for i, a in enumerate(args[:2])]
        composite(*both, *args[2:]).channels.sum().backward()
        composite(*only, *args[2:]).channels.sum().backward()
        assert only[1 - wanted].grad is None
        torch.testing.assert_close(only[wanted].grad, both[wanted].grad, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [33, 70])
def test_more_channels_go_in_passes(device: str, n_channels: int) -> None:
    args = make([4, 0, 9], n_channels)
    cotangents = [rand(3, n_channels, seed=1).to(device), torch.ones(3, device=device), None, None, None]
    fused, fused_grads = run_with_grad(
        lambda *a: composite(*a, return_weights=True), to(device, args), DIFFERENTIABLE, cotangents
    )
    truth, truth_grads = run_with_grad(
        lambda *a: reference(*a, return_weights=True)[:5], to(device, args), DIFFERENTIABLE, cotangents
    )
    close = tolerance(args)
    for a, b in zip([*fused, *fused_grads], [*truth, *truth_grads], strict=True):
        torch.testing.assert_close(a, b, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
def test_a_ray_without_samples_is_clear(device: str) -> None:
    out = composite(*to(device, make([0, 2, 0])), return_weights=True)
    for value in out[:4]:
        assert (value[[0, 2]] == 0).all()
    assert out.n_samples.tolist() == [0, 2, 0]
    assert composite(*to(device, make([1]))).weights is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_computed_in_float32(device: str, dtype: torch.dtype, autocast: bool) -> None:
    args = to(device, make(COUNTS["ragged"]))
    densities, channels = (a.to(dtype).requires_grad_() for a in args[:2])
    with torch.autocast(device, dtype=dtype, enabled=autocast):
        out = composite(densities, channels, *args[2:])
    truth = composite(densities.detach().float(), channels.detach().float(), *args[2:])
    for a, b in zip(out[:4], truth[:4], strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    (out[0].sum() + out[1].sum()).backward()
    assert densities.grad is not None
    assert channels.grad is not None
    assert densities.grad.dtype == channels.grad.dtype == dtype


def test_bad_arguments_are_named() -> None:
    densities, channels, t_starts, t_ends, offsets = make([3, 2])
    with pytest.raises(ValueError, match=r"densities: expected shape \[N\], got \[5, 3\]"):
        composite(channels, channels, t_starts, t_ends, offsets)
    with pytest.raises(ValueError, match=r"densities: expected dtype .* got torch.int64"):
        composite(densities.long(), channels, t_starts, t_ends, offsets)
    with pytest.raises(ValueError, match=r"channels: expected dtype torch.float64, got torch.float32"):
        composite(densities.double(), channels, t_starts, t_ends, offsets)
    with pytest.raises(ValueError, match=r"channels: expected shape \[5, C\], got \[4, 3\]"):
        composite(densities, channels[:4], t_starts, t_ends, offsets)
    with pytest.raises(ValueError, match=r"t_ends: expected dtype torch.float32"):
        composite(densities, channels, t_starts, t_ends.bfloat16(), offsets)
    with pytest.raises(ValueError, match=r"offsets: expected dtype torch.int32, got torch.int64"):
        composite(densities, channels, t_starts, t_ends, offsets.long())
    with pytest.raises(ValueError, match=r"offsets: expected shape"):
        composite(densities, channels, t_starts, t_ends, offsets[:0])
    for eps in (-0.1, 1.0, NAN):
        with pytest.raises(ValueError, match="early_stop_eps: expected a transmittance"):
            composite(densities, channels, t_starts, t_ends, offsets, early_stop_eps=eps)
