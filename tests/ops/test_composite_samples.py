"""Weights, transmittance and opacities of samples: values and gradients of each by itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.composite_reference import reference
from tests.ops.by_hand import by_hand
from tests.ops.harness import DEVICES, check_op, poison_tail, rand, to
from tests.ops.test_composite import COUNTS, INF, NAN, Args, full, make, tolerance, transmittance

NAMES = ("weights", "trans", "alphas")
ALL: dict[str, Any] = {f"return_{name}": True for name in NAMES}


def assert_counts_are_certain(args: Args, eps: float) -> None:
    """No transmittance is so near to the threshold that its rounding may decide."""
    if eps > 0 and len(args[0]) > 0:
        assert (transmittance(args) / eps - 1).abs().min() > tolerance(args)["rtol"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [0, 3, 5])
@pytest.mark.parametrize("eps", [0.0, 0.05])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_values_are_those_of_a_loop(device: str, counts: list[int], eps: float, n_channels: int) -> None:
    args = make(counts, n_channels, opacity=6.0, seed=3)
    assert_counts_are_certain(args, eps)
    out, truth = composite(*to(device, args), early_stop_eps=eps, **ALL), by_hand(*args, eps)
    close = tolerance(args)
    for name in ("channels", "opacity", "depth", *NAMES):
        value = getattr(out, name).cpu().double()
        torch.testing.assert_close(value, getattr(truth, name), rtol=close["rtol"], atol=close["atol"], msg=name)
    assert out.n_samples.tolist() == truth.n_samples
    torch.testing.assert_close(out.weights, out.trans * out.alphas, rtol=2**-22, atol=1e-37)  # type: ignore[operator]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("names", [c for k in (1, 2, 3) for c in itertools.combinations(NAMES, k)], ids="+".join)
@pytest.mark.parametrize("n_channels", [3, 6])
def test_gradients_of_any_subset_are_those_of_a_loop(device: str, n_channels: int, names: tuple[str, ...]) -> None:
    args = make([0, 7, 1, 0, 40, 130], n_channels, seed=4)
    counts = [0, 7, 1, 0, 40, 130]
    cotangents = {name: rand(sum(counts), seed=20 + i, low=-1) for i, name in enumerate(names)}
    cotangents["channels"] = rand(len(counts), n_channels, seed=30, low=-1)

    def gradients(function: Any, where: str, options: dict[str, Any]) -> list[Tensor]:
        leaves = [a.to(where).requires_grad_() for a in args[:2]]
        out = function(*leaves, *to(where, args[2:]), **options)
        loss = sum((getattr(out, name) * c.to(where)).sum() for name, c in cotangents.items())
        return [g.cpu().double() for g in torch.autograd.grad(loss, leaves)]  # type: ignore[arg-type]

    close = tolerance(args)
    options = {f"return_{name}": True for name in names}
    for mine, truth in zip(gradients(composite, device, options), gradients(by_hand, "cpu", {}), strict=True):
        torch.testing.assert_close(mine, truth, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 6])
def test_what_is_not_asked_for_is_none_and_the_tail_is_zero(device: str, n_channels: int) -> None:
    densities, channels, t_starts, t_ends, offsets = to(device, make([0, 3, 1, 0, 5], n_channels))
    poisoned = [poison_tail(a, 9, extra=5) for a in (densities, channels, t_starts, t_ends)]
    out = composite(*poisoned, offsets, **ALL)
    for name in NAMES:
        assert (getattr(out, name)[9:] == 0).all()
        only = composite(*poisoned, offsets, **{f"return_{name}": True})
        assert torch.equal(getattr(only, name), getattr(out, name))
        assert [getattr(only, other) is None for other in NAMES] == [other != name for other in NAMES]
    assert composite(*poisoned, offsets)[4:] == (None, None, None)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_do_not_come_from_beyond_the_threshold(device: str) -> None:
    args = to(device, make([60], opacity=20.0))
    densities = args[0].clone().requires_grad_()
    out = composite(densities, *args[1:], early_stop_eps=1e-2, **ALL)
    used = int(out.n_samples)
    assert 0 < used < 60
    for name in NAMES:
        (grad,) = torch.autograd.grad(getattr(out, name).sum(), densities, retain_graph=True)
        assert (grad[used:] == 0).all()
        truth = args[0].cpu().double().requires_grad_()
        total = getattr(by_hand(truth, *(a.cpu() for a in args[1:]), 1e-2), name).sum()
        (expected,) = torch.autograd.grad(total, truth)
        close = tolerance(args)
        torch.testing.assert_close(grad.cpu().double(), expected, rtol=close["grad_rtol"], atol=60 * close["rtol"])


@pytest.mark.parametrize("device", DEVICES)
def test_void_samples_let_all_light_pass(device: str) -> None:
    densities = torch.tensor([1.0, NAN, -2.0, 3.0, INF, 1.0])
    ends = torch.tensor([1.0, 2.0, 3.0, 3.0, 5.0, 6.0])  # the fourth has no length
    offsets = torch.tensor([0, 6], dtype=torch.int32)
    args = to(device, (densities, torch.full((6, 3), 0.5), torch.arange(6.0), ends, offsets))
    leaf = args[0].clone().requires_grad_()
    out = composite(leaf, *args[1:], **ALL)
    clear = float(torch.exp(torch.tensor(-1.0)))
    torch.testing.assert_close(out.trans.cpu(), torch.tensor([1, clear, clear, clear, clear, 0.0]))
    torch.testing.assert_close(out.alphas.cpu(), torch.tensor([1 - clear, 0, 0, 0, 1, 1 - clear]))
    (grad,) = torch.autograd.grad(out.trans.sum() + out.alphas.sum() + out.weights.sum(), leaf)
    assert grad.isfinite().all()
    assert (grad[1:5] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_far_plane_of_1e9(device: str) -> None:
    starts = torch.tensor([0.0, 1.0, 1e3, 1e6])
    ends = torch.tensor([1.0, 1e3, 1e6, 1e9])
    densities = torch.tensor([0.5, 1e-4, 1e-7, 1e-3]).to(device).requires_grad_()
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    out = composite(densities, *to(device, (torch.ones(4, 3), starts, ends, offsets)), **ALL)
    truth = by_hand(densities.detach().cpu(), torch.ones(4, 3), starts, ends, offsets)
    torch.testing.assert_close(out.weights.cpu().double(), truth.weights, rtol=1e-6, atol=1e-7)
    (out.depth.sum() + out.trans.sum()).backward()
    assert densities.grad is not None
    assert densities.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 9])
def test_lengths_and_places_in_the_place_of_ends(device: str, n_channels: int) -> None:
    densities, channels, t_starts, t_ends, offsets = to(device, make(COUNTS["ragged"], n_channels))
    middles, lengths = (t_starts + t_ends) / 2, t_ends - t_starts
    leaves = [a.clone().requires_grad_() for a in (densities, channels)]
    other = [a.clone().requires_grad_() for a in (densities, channels)]
    background = rand(3, seed=1).to(device)
    ends = composite(*leaves, t_starts, t_ends, offsets, background=background, **ALL)
    given = composite(*other, None, None, offsets, deltas=lengths, ts=middles, background=background, **ALL)
    close = tolerance((densities, channels, t_starts, t_ends, offsets))
    for a, b in zip(given, ends, strict=True):  # equal bits from the kernels; the reference takes lengths in float64
        torch.testing.assert_close(a, b, rtol=close["rtol"], atol=close["atol"])
    for out, inputs in ((ends, leaves), (given, other)):
        (out.channels.sum() + (out.depth * 0.1).sum() + out.trans.sum()).backward()  # type: ignore[union-attr]
        assert inputs[0].grad is not None
    for a, b in zip(leaves, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=close["grad_rtol"], atol=close["grad_atol"])
    moved = composite(densities, channels, None, None, offsets, deltas=lengths, ts=middles + 2)
    torch.testing.assert_close(moved.depth, ends.depth + 2 * ends.opacity, rtol=close["rtol"], atol=2 * close["atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_samples_that_begin_anywhere_in_memory(device: str, shift: int) -> None:
    """Views that are not aligned to 16 bytes give the same values."""
    args = to(device, make(COUNTS["ragged"]))
    shifted = [torch.cat([a[:shift], a])[shift:] for a in args[:4]]
    assert shifted[0].data_ptr() % 16 != 0 or device == "cpu"
    leaves = [[a.detach().requires_grad_() for a in pair] for pair in (args[:2], shifted[:2])]
    outs = [composite(*leaves[0], *args[2:], **ALL), composite(*leaves[1], *shifted[2:], args[4], **ALL)]
    for out in outs:
        (out.channels.sum() + out.trans.sum()).backward()  # type: ignore[union-attr]
    close = tolerance(args)
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b, rtol=close["rtol"], atol=close["atol"])
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [0, 3, 4, 7])
@pytest.mark.parametrize("mean", [1, 8, 50, 300])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_any_raggedness(device: str, eps: float, mean: int, n_channels: int) -> None:
    """Empty, short and long rays beside each other, in every phase against multiples of four."""
    generator = torch.Generator().manual_seed(mean)
    counts = (torch.rand(40, generator=generator) ** 3 * 4 * mean).int().tolist()
    args = make(counts, n_channels, opacity=5.0, seed=mean)
    assert_counts_are_certain(args, eps)
    differentiable = (0, 1) if n_channels else (0,)
    inputs = full(args, eps)
    check_op("composite", reference, inputs, device=device, differentiable=differentiable, opcheck=False, **tolerance(args))


@pytest.mark.parametrize("device", DEVICES)
def test_float64_takes_the_reference(device: str) -> None:
    densities, channels, t_starts, t_ends, offsets = to(device, make([4, 0, 3], 40))
    doubles = [a.double() for a in (densities, channels)]
    out = composite(*doubles, t_starts, t_ends, offsets, background=rand(3, seed=1).to(device), **ALL)
    assert {v.dtype for v in out if v is not None} == {torch.float64, torch.int32}
    truth = by_hand(densities.cpu(), channels.cpu(), t_starts.cpu(), t_ends.cpu(), offsets.cpu())
    torch.testing.assert_close(out.depth.cpu(), truth.depth)
    torch.testing.assert_close(out.channels[:, 3:].cpu(), truth.channels[:, 3:])
    leaf = doubles[0].requires_grad_()
    colors = composite(leaf, doubles[1], t_starts.double(), t_ends, offsets).channels
    (first,) = torch.autograd.grad(colors.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert second.abs().sum() > 0


def test_gradcheck_of_the_reference() -> None:
    densities, channels, t_starts, t_ends, offsets = make([0, 4, 1, 7], 2)

    def per_sample(densities: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        out = reference(densities, channels, t_starts, t_ends, offsets, 0.1, False, False, True, True, True)
        return out[4:]

    inputs = tuple(a.double().requires_grad_() for a in (densities + 0.1, channels))
    assert torch.autograd.gradcheck(lambda d: per_sample(d, inputs[1].detach()), inputs[:1])


def test_bad_intervals_are_named() -> None:
    densities, channels, t_starts, t_ends, offsets = make([3, 2])
    for bad in [
        (None, None, {}),
        (t_starts, None, {}),
        (None, None, {"deltas": t_ends}),
        (t_starts, t_ends, {"deltas": t_ends, "ts": t_starts}),
        (t_starts, None, {"ts": t_starts}),
    ]:
        with pytest.raises(ValueError, match=r"expected t_starts and t_ends, or deltas and ts, got "):
            composite(densities, channels, *bad[:2], offsets, **bad[2])
    with pytest.raises(ValueError, match=r"deltas: expected shape \[5\], got \[4\]"):
        composite(densities, channels, None, None, offsets, deltas=t_ends[:4], ts=t_starts)
