from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.ray_loss import ray_loss, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, run_with_grad, to

OP = torch.ops.lightning_nerf.ray_loss
INF, NAN = float("inf"), float("nan")
# On CUDA a thread sums 1 ray, then warps, blocks and one block of blocks as trees; past 131,072 rays a thread sums several.
SIZES = [0, 1, 5, 300, 3000, 140_000]


def make(n: int, *, alpha: bool = True, per_ray: bool = True, mask: bool = True, delta: float = 0.1) -> tuple[Any, ...]:
    """Errors on both sides of delta; a third of the rays does not count, and holds NaN."""
    rgb, target = rand(n, 3, seed=0), rand(n, 3, seed=1)
    a = rand(n, seed=2, low=-0.5, high=1.5).clamp(0, 1)  # half of them are 0 or 1
    background = rand(n, 3, seed=3) if per_ray else rand(3, seed=3)
    kept, counted = rand(n, seed=4) > 0.2, rand(n, seed=5) > 0.2
    rgb[~(kept & counted) if mask else ~kept] = NAN
    return rgb, target, a if alpha else None, background if alpha else None, kept, counted if mask else None, delta


def close_to(n: int) -> dict[str, float]:
    """Sums of 3 n positive float32 as trees of up to 2^8 leaves: at most 3 log2(2^8) + 3 roundings, and five of a term.

    Gradients are products of three factors, each with the roundings of an error up to 1 (of which 2^-22 covers four).
    """
    return {"rtol": 32 * 2**-24, "atol": 1e-9, "grad_rtol": 8 * 2**-24, "grad_atol": 2**-22 / (3 * max(1, n // 3))}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("delta", [0.1, 10.0, INF])
@pytest.mark.parametrize("n", SIZES)
def test_kernel_equals_the_reference(device: str, n: int, delta: float) -> None:
    args = make(n, delta=delta)
    check_op("ray_loss", reference, args, device=device, differentiable=(0,), opcheck=n == 5, **close_to(n))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_what_may_be_missing(device: str, alpha: bool, per_ray: bool, mask: bool) -> None:
    args = make(40, alpha=alpha, per_ray=per_ray, mask=mask)
    check_op("ray_loss", reference, args, device=device, differentiable=(0,), **close_to(40))


def test_the_loss_is_that_of_the_definition() -> None:
    rgb, target, alpha, background, kept, mask, delta = make(50)
    total = square = count = 0.0
    for i in range(50):
        if not (kept[i] and mask[i]):
            continue
        count += 1
        for c in range(3):
            truth = float(alpha[i]) * float(target[i, c]) + (1 - float(alpha[i])) * float(background[i, c])
            e = abs(float(rgb[i, c]) - truth)
            total += e * e / 2 if e < delta else delta * (e - delta / 2)
            square += e * e
    assert 0 < count < 50
    loss, mse, n_rays = ray_loss(rgb, target, kept=kept, mask=mask, alpha=alpha, background=background, delta=delta)
    assert int(n_rays) == count
    assert float(loss) == pytest.approx(total / (3 * count), rel=1e-6)
    assert float(mse) == pytest.approx(square / (3 * count), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_both_ends_of_alpha_are_exact(device: str) -> None:
    target, background = rand(64, 3, seed=1).to(device), rand(64, 3, seed=2).to(device)
    alpha = (torch.arange(64, device=device) % 2).float()
    rgb = torch.where(alpha[:, None] > 0, target, background)
    kept = torch.ones(64, dtype=torch.bool, device=device)
    loss, mse, _ = ray_loss(rgb, target, kept=kept, alpha=alpha, background=background, delta=0.1)
    assert loss == 0
    assert mse == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kept", [False, True])
def test_rays_that_do_not_count_have_no_effect(device: str, kept: bool) -> None:
    """Whatever they hold; and if none counts, loss and gradients are 0."""
    args = list(make(400))
    counted = (args[4] & args[5]) if kept else torch.zeros(400, dtype=torch.bool)
    args[4] = counted
    args[0].nan_to_num_(0.5)
    one = torch.ones((), device=device)
    results = []
    for value in (NAN, INF, 0.25):
        poisoned = [a.clone() if isinstance(a, Tensor) else a for a in args]
        for i in (0, 1, 2, 3):
            poisoned[i][~counted] = value
        results.append(run_with_grad(OP, to(device, poisoned), (0,), [one, None, None]))
    for outputs, (grad,) in results:
        assert torch.equal(outputs[0], results[0][0][0])
        assert torch.equal(outputs[1], results[0][0][1])
        assert torch.equal(grad, results[0][1][0])
        assert (grad[~counted.to(device)] == 0).all()
    outputs, (grad,) = results[0]
    assert outputs[0].isfinite()
    assert bool(outputs[0] > 0) == bool((grad != 0).any()) == kept


@pytest.mark.parametrize("device", DEVICES)
def test_a_ray_that_counts_shows_its_nan(device: str) -> None:
    args = to(device, make(40))
    args[0].fill_(NAN)
    assert OP(*args)[0].isnan()


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_each_time(device: str) -> None:
    args = to(device, make(70_000))
    first = OP(*args)
    for _ in range(3):
        for a, b in zip(OP(*args), first, strict=True):
            assert torch.equal(a, b)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    args, before, results = make(70_000), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs, grads = run_with_grad(OP, args, (0,), [torch.ones(()), None, None])
            results.append([*outputs, *grads])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_a_learned_background_gets_its_gradient(device: str) -> None:
    rgb, target, alpha, _, kept, mask, delta = to(device, make(40))
    background = torch.full((3,), 0.3, device=device, requires_grad=True)
    loss, mse, n_rays = ray_loss(rgb, target, kept=kept, mask=mask, alpha=alpha, background=background, delta=delta)
    loss.backward()
    assert background.grad is not None
    assert background.grad.abs().min() > 0
    plain = ray_loss(rgb, target, kept=kept, mask=mask, alpha=alpha, background=background.detach(), delta=delta)
    for a, b in zip((loss, mse, n_rays), plain, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=close_to(40)["rtol"], atol=0)


def test_only_the_loss_is_differentiable() -> None:
    rgb, *args = make(7)
    loss, mse, n_rays = OP(rgb.nan_to_num(0.5).requires_grad_(), *args)
    assert loss.requires_grad
    assert not mse.requires_grad
    assert not n_rays.requires_grad


def test_second_derivatives_raise() -> None:
    rgb, *args = make(7)
    rgb = rgb.nan_to_num(0.5).requires_grad_()
    (first,) = torch.autograd.grad(OP(rgb, *args)[0], rgb, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference is differentiable twice"):
        first.sum().backward()


def test_gradcheck_of_the_reference() -> None:
    rgb, target, alpha, background, kept, mask, delta = make(6)
    doubles = [a.double() for a in (rgb.nan_to_num(0.5), target, alpha, background)]

    def loss(*values: Tensor) -> Tensor:
        return reference(*values, kept, mask, delta)[0]

    inputs = tuple(a.requires_grad_() for a in doubles)
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_comparison_detects_a_mean_over_all_rays() -> None:
    args = make(60)

    def mutated(*values: Any) -> tuple[Tensor, ...]:
        loss, mse, n_rays = reference(*values)
        return loss * n_rays / 60, mse, n_rays

    def check(truth: Any) -> None:
        check_op("ray_loss", truth, args, device="cpu", opcheck=False, **close_to(60))

    check(reference)
    assert_detected(lambda: check(mutated))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    rgb, target, alpha, background, kept, mask, delta = make(40)
    rgb = rgb.nan_to_num(0.5).to(dtype).requires_grad_()
    loss, _, _ = ray_loss(rgb, target, kept=kept, mask=mask, alpha=alpha, background=background, delta=delta)
    truth = ray_loss(rgb.detach().float(), target, kept=kept, mask=mask, alpha=alpha, background=background, delta=delta)
    assert torch.equal(loss.detach(), truth[0])
    loss.backward()
    assert rgb.grad is not None
    assert rgb.grad.dtype == dtype


def test_bad_arguments_are_named() -> None:
    rgb, target, alpha, background, kept, mask, delta = make(5)
    good = {"kept": kept, "mask": mask, "alpha": alpha, "background": background, "delta": delta}
    with pytest.raises(ValueError, match=r"rgb: expected shape \[5, 3\], got \[4, 3\]"):
        ray_loss(rgb[:4], target, **good)
    with pytest.raises(ValueError, match=r"target: expected dtype .* got torch.float64"):
        ray_loss(rgb, target.double(), **good)
    for name, value, message in [
        ("kept", kept.int(), r"kept: expected dtype torch.bool, got torch.int32"),
        ("mask", mask[:3], r"mask: expected shape \[5\], got \[3\]"),
        ("alpha", alpha[:, None], r"alpha: expected shape \[5\], got \[5, 1\]"),
        ("background", background[:4], r"background: expected shape \[5, 3\], got \[4, 3\]"),
        ("background", None, r"background: expected a tensor, as there is alpha, got None"),
        ("background", background.to("meta"), r"background: expected a tensor on cpu \(where kept is\)"),
        ("delta", 0.0, r"delta: expected > 0, got 0.0"),
        ("delta", NAN, r"delta: expected > 0, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            ray_loss(rgb, target, **(good | {name: value}))
