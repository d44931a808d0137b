from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import composite_reference as module
from lightning_nerf.ops.composite import composite, composite_alphas
from lightning_nerf.ops.composite_reference import reference
from tests.ops.by_hand import by_hand
from tests.ops.harness import DEVICES, assert_detected, check_op, poison_tail, rand, to
from tests.ops.test_composite import COUNTS, DIFFERENTIABLE, INF, NAN, Args, make, tolerance


def alphas_of(counts: list[int], n_channels: int = 3, *, seed: int = 0, share: float = 0.15) -> Args:
    """Some alphas are exactly 0 and some exactly 1."""
    _, channels, t_starts, t_ends, offsets = make(counts, n_channels, seed=seed)
    n = sum(counts)
    alphas, draw = rand(n, seed=seed + 7, high=0.4), rand(n, seed=seed + 8)
    alphas[draw < share] = 0.0
    alphas[draw > 1 - share / 3] = 1.0
    return alphas, channels, t_starts, t_ends, offsets


def full(args: Any, eps: float = 0.0, background: Tensor | None = None) -> tuple[Any, ...]:
    return (*args, eps, True, False, True, True, True, background)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [0, 1, 3, 4, 20])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_kernel_equals_the_reference(device: str, counts: list[int], n_channels: int) -> None:
    args = alphas_of(counts, n_channels)
    check_op(
        "composite",
        reference,
        full(args, 0.0, rand(3, seed=3) if n_channels >= 3 else None),
        device=device,
        differentiable=DIFFERENTIABLE if args[1].numel() else (0,),
        opcheck=n_channels == 3 and len(counts) in (0, 12),
        **many_terms(args),
    )


def many_terms(args: Args) -> dict[str, float]:
    """Without a length in front, an alpha's gradient sums a cotangent of up to 1 for each sample behind it."""
    close = tolerance(args)
    longest = int(args[4].diff().max()) if args[4].shape[0] > 1 else 1
    return close | {"grad_atol": close["grad_atol"] + longest * close["rtol"]}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 6])
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_values_and_gradients_are_those_of_a_loop(device: str, eps: float, n_channels: int) -> None:
    args = alphas_of([0, 7, 1, 0, 40, 70], n_channels)
    cotangents = [rand(6, n_channels, seed=1, low=-1), rand(6, seed=2, low=-1), rand(6, seed=3, low=-1)]
    cotangents += [rand(118, seed=4, low=-1), rand(118, seed=5, low=-1)]

    def run(function: Any, where: str, **options: Any) -> tuple[Any, list[Tensor]]:
        leaves = [a.to(where).requires_grad_() for a in args[:2]]
        out = function(*leaves, *to(where, args[2:]), **options)
        outputs = [out.channels, out.opacity, out.depth, out.weights, out.trans]
        return out, list(torch.autograd.grad(outputs, leaves, [c.to(o) for c, o in zip(cotangents, outputs, strict=True)]))

    wanted = {"return_weights": True, "return_trans": True}
    out, grads = run(composite_alphas, device, early_stop_eps=eps, **wanted)
    truth, expected = run(by_hand, "cpu", eps=eps, alphas_given=True)
    unstopped = by_hand(*args, alphas_given=True).trans
    assert eps == 0 or (unstopped / eps - 1).abs().min() > 3 * 2**-24 * 70  # rounding does not decide where a ray ends
    close = many_terms(args)
    for name in ("channels", "opacity", "depth", "weights", "trans"):
        value = getattr(out, name).cpu().double()
        torch.testing.assert_close(value, getattr(truth, name), rtol=close["rtol"], atol=close["atol"], msg=name)
    assert out.n_samples.tolist() == truth.n_samples
    for mine, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), exact, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_at_an_opaque_sample_sees_what_is_behind_it(device: str) -> None:
    """d color / d alpha_i = T_i (c_i - what is behind i, as if i were not there): no division by 1 - alpha_i = 0."""
    alphas = torch.tensor([0.0, 1.0, 1.0, 0.5]).to(device).requires_grad_()
    colors = torch.tensor([[0.2], [0.4], [0.9], [0.6]]).to(device)
    t = torch.arange(4.0).to(device)
    out = composite_alphas(alphas, colors, None, None, torch.tensor([0, 4], dtype=torch.int32).to(device), ts=t)
    (grad,) = torch.autograd.grad(out.channels.sum(), alphas)
    torch.testing.assert_close(grad.cpu(), torch.tensor([0.2 - 0.4, 0.4 - 0.9, 0.0, 0.0]))
    assert out.depth.item() == 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_alphas_outside_their_range_are_defined(device: str) -> None:
    alphas = torch.tensor([NAN, -0.5, 0.25, 1.5, INF, 0.5]).to(device).requires_grad_()
    channels = rand(6, 3, seed=1).to(device)
    poisoned = channels.clone()
    poisoned[:2] = NAN
    rest = to(device, (torch.arange(6.0), torch.arange(6.0), torch.tensor([0, 3, 6], dtype=torch.int32)))
    out = composite_alphas(alphas, poisoned, *rest, return_weights=True)
    assert out.weights is not None
    assert out.weights.tolist() == [0, 0, 0.25, 1, 0, 0]
    torch.testing.assert_close(out.channels[1], channels[3], rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.channels.sum(), alphas)
    assert (grad[[0, 1, 3, 4]] == 0).all()
    assert grad.isfinite().all()
    assert grad[2] != 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_as_densities(device: str) -> None:
    args = to(device, make(COUNTS["ragged"]))
    alphas = -torch.expm1(-args[0] * (args[3] - args[2]))
    close = tolerance(args)
    for a, b in zip(composite_alphas(alphas, *args[1:])[:3], composite(*args)[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=2 * close["rtol"], atol=2 * close["atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 5])
def test_a_poisoned_tail_changes_nothing(device: str, n_channels: int) -> None:
    args = alphas_of([5, 0, 9], n_channels)
    longer = to(device, [*(poison_tail(a, 14, extra=9) for a in args[:4]), args[4]])
    args, leaf = to(device, args), longer[0].requires_grad_()
    out, truth = composite_alphas(*longer, return_trans=True), composite_alphas(*args, return_trans=True)
    torch.testing.assert_close(out.channels, truth.channels)
    assert out.trans is not None
    assert (out.trans[14:] == 0).all()
    (grad,) = torch.autograd.grad(out.channels.sum(), leaf)
    assert (grad[14:] == 0).all()


def test_the_comparison_detects_a_quotient() -> None:
    """exclusive products by way of logarithms lose the gradient at alpha = 1."""

    def by_logarithms(values: Tensor, owner: Tensor, offsets: Tensor) -> Tensor:
        return torch.exp(module.exclusive_sum(torch.log(values.clamp(min=1e-30)), owner, offsets))

    def mutated(*args: Any) -> Any:
        with mock.patch.object(module, "exclusive_product", by_logarithms):
            return reference(*args)

    args = alphas_of(COUNTS["ragged"])

    def check(truth: Any) -> None:
        inputs = full(args)
        check_op("composite", truth, inputs, device="cpu", differentiable=(0,), opcheck=False, **many_terms(args))

    check(reference)
    assert_detected(lambda: check(mutated))


def test_gradcheck_of_the_reference() -> None:
    """At 0 and 1 only from inside: a clamp has no derivative there from outside."""
    alphas, channels, t_starts, t_ends, offsets = alphas_of([0, 4, 1, 7], 2, share=0.0)
    inputs = tuple(a.double().requires_grad_() for a in (alphas * 0.9 + 0.05, channels))

    def floats(alphas: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        out = reference(*full((alphas, channels, t_starts, t_ends, offsets)))
        return (*out[:3], *out[4:])

    assert torch.autograd.gradcheck(floats, inputs)
    assert torch.autograd.gradgradcheck(floats, inputs)


def test_bad_arguments_are_named() -> None:
    args = alphas_of([3, 2])
    with pytest.raises(ValueError, match=r"alphas: expected shape \[N\], got \[5, 1\]"):
        composite_alphas(args[0][:, None], *args[1:])
    with pytest.raises(ValueError, match=r"channels: expected a tensor on cpu \(where alphas is\), got meta"):
        composite_alphas(args[0], args[1].to("meta"), *args[2:])
    with pytest.raises(ValueError, match="expected either t_starts and t_ends, or ts"):
        composite_alphas(*args, ts=args[2])
    with pytest.raises(ValueError, match="expected either t_starts and t_ends, or ts"):
        composite_alphas(args[0], args[1], None, None, args[4])
