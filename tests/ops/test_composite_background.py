from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.composite_reference import reference
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, run_with_grad, to
from tests.ops.test_composite import COUNTS, INF, full, make, tolerance

DIFFERENTIABLE = (0, 1, 11)  # densities, channels, background


def background_of(counts: list[int], per_ray: bool) -> Tensor:
    return rand(len(counts), 3, seed=11) if per_ray else rand(3, seed=11)


def close_to(args: Any) -> dict[str, float]:
    """One more term in a channel, and the background's gradient, which sums one per ray (of up to 1)."""
    close = tolerance(args)
    n_rays = args[4].shape[0] - 1
    return close | {"grad_rtol": close["rtol"] + n_rays * 2**-24, "grad_atol": close["grad_atol"] + n_rays * 2**-24}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("n_channels", [3, 4, 20])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_kernel_equals_the_reference(device: str, counts: list[int], n_channels: int, per_ray: bool) -> None:
    args = make(counts, n_channels)
    differentiable = DIFFERENTIABLE if len(counts) > 0 and args[1].numel() > 0 else (0,)
    check_op(
        "composite",
        reference,
        full(args, background=background_of(counts, per_ray)),
        device=device,
        differentiable=differentiable,
        opcheck=n_channels == 3 and len(counts) in (0, 12),
        **close_to(args),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [3, 9])
def test_clear_rays_show_it_exactly_and_opaque_ones_hide_it_exactly(device: str, n_channels: int) -> None:
    args = make([4, 0, 2, 0], n_channels)
    args[0][:2], args[0][4] = INF, INF
    background = rand(4, 3, seed=11, high=9).to(device)
    with_it = composite(*to(device, args), background=background)
    without = composite(*to(device, args))
    clear, opaque = [1, 3], [0, 2]
    assert torch.equal(with_it.channels[clear, :3], background[clear])
    assert torch.equal(with_it.channels[opaque], without.channels[opaque])
    assert torch.equal(with_it.channels[:, 3:], without.channels[:, 3:])
    for name in ("opacity", "depth", "n_samples"):
        assert torch.equal(getattr(with_it, name), getattr(without, name))


@pytest.mark.parametrize("device", DEVICES)
def test_a_constant_background_adds_no_gradient_of_its_own_size(device: str) -> None:
    """The same gradients as from adding it behind the op, and none for a background that wants none."""
    args = to(device, make(COUNTS["ragged"]))
    background = background_of(COUNTS["ragged"], True).to(device)
    cotangent = rand(len(COUNTS["ragged"]), 3, seed=4, low=-1).to(device)

    def inside(densities: Tensor, channels: Tensor) -> Tensor:
        return composite(densities, channels, *args[2:], background=background).channels

    def outside(densities: Tensor, channels: Tensor) -> Tensor:
        out = composite(densities, channels, *args[2:])
        return out.channels + (1 - out.opacity)[:, None] * background

    results = [run_with_grad(f, args[:2], (0, 1), [cotangent]) for f in (inside, outside)]
    close = tolerance(args)
    for a, b in zip(*([*outputs, *grads] for outputs, grads in results), strict=True):
        torch.testing.assert_close(a, b, rtol=close["grad_rtol"], atol=close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
def test_more_than_32_channels_have_one_background(device: str) -> None:
    counts = [4, 0, 9]
    args, background = make(counts, 40), background_of(counts, True)
    fused = composite(*to(device, args), background=background.to(device)).channels
    close = tolerance(args)
    truth = reference(*args, background=background)[0]
    torch.testing.assert_close(fused.cpu(), truth, rtol=close["rtol"], atol=close["atol"])


def test_the_comparison_detects_a_missing_gradient_of_the_opacity() -> None:
    args, background = make(COUNTS["ragged"]), background_of(COUNTS["ragged"], False)

    def mutated(*inputs: Any) -> tuple[Tensor, ...]:
        out, opacity, *others = reference(*inputs[:-1])
        return out + (1 - opacity.detach())[:, None] * inputs[-1], opacity, *others

    def check(truth: Any) -> None:
        inputs = full(args, background=background)
        check_op("composite", truth, inputs, device="cpu", differentiable=(0, 1), opcheck=False, **close_to(args))

    check(reference)
    assert_detected(lambda: check(mutated))


@pytest.mark.parametrize("per_ray", [False, True])
def test_gradcheck_of_the_reference(per_ray: bool) -> None:
    counts = [0, 4, 1, 7]
    densities, channels, t_starts, t_ends, offsets = make(counts)
    doubles = [a.double() for a in (densities + 0.1, channels, background_of(counts, per_ray))]

    def colors(densities: Tensor, channels: Tensor, background: Tensor) -> Tensor:
        return reference(densities, channels, t_starts.double(), t_ends.double(), offsets, background=background)[0]

    assert torch.autograd.gradcheck(colors, tuple(a.requires_grad_() for a in doubles))


def test_bad_arguments_are_named() -> None:
    args = make([3, 2])
    with pytest.raises(ValueError, match=r"background: expected shape \[2, 3\], got \[3, 3\]"):
        composite(*args, background=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"background: expected shape \[3\], got \[4\]"):
        composite(*args, background=torch.zeros(4))
    with pytest.raises(ValueError, match=r"background: expected dtype .* got torch.int64"):
        composite(*args, background=torch.zeros(3).long())
    with pytest.raises(ValueError, match="background: expected at least 3 channels in front of it, got 2"):
        composite(*make([3, 2], 2), background=torch.zeros(3))
    with pytest.raises(ValueError, match=r"background: expected a tensor on cpu"):
        composite(*args, background=torch.zeros(3, device="meta"))
