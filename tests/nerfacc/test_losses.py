from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc.losses import distortion
from tests.ops.harness import DEVICES, rand, to

COUNTS = [3, 0, 1, 40, 0, 7, 100]


def samples(counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Weights, ascending intervals with gaps between them, ray_indices, n_rays."""
    n = sum(counts)
    ray_indices = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    t_starts = torch.cat([torch.arange(c) / 32 for c in counts] or [torch.zeros(0)])  # exact
    return rand(n, seed=1) / 64, t_starts, t_starts + rand(n, seed=2, low=0.2, high=0.9) / 32, ray_indices, len(counts)


def by_pairs(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Equation 15 of Mip-NeRF 360: all pairs of a ray's samples."""
    losses = []
    for ray in range(n_rays):
        w, start, end = (v[ray_indices == ray] for v in (weights, t_starts, t_ends))
        middle = (start + end) / 2
        pairs = w[:, None] * w * (middle[:, None] - middle).abs()
        losses.append(pairs.sum() + (w.square() * (end - start)).sum() / 3)
    return torch.stack(losses)[:, None] if losses else weights.new_zeros(0, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counts", [[], [0, 0], [1], [5], COUNTS])
def test_it_is_the_definition(device: str, counts: list[int]) -> None:
    args = to(device, samples(counts))
    inputs = [a.requires_grad_() for a in args[:3]]
    doubles = [a.detach().double().requires_grad_() for a in inputs]
    loss, truth = distortion(*args), by_pairs(*doubles, *args[3:])
    assert loss.shape == (len(counts), 1)
    cotangent = rand(len(counts), 1, seed=5).to(device)
    grads = torch.autograd.grad(loss, inputs, cotangent)
    true_grads = torch.autograd.grad(truth, doubles, cotangent.double()) if counts else grads
    # Terms are positive, but for those of t: of these the sum of sizes is at most twice the weight times a weight. A
    # rounding for each term of three sums over the ray, and for each of t's.
    roundings = 4 * max(counts, default=1) + 8
    torch.testing.assert_close(loss.double(), truth.double(), rtol=roundings * 2**-24, atol=0)
    sizes = 2 * float(args[0].detach().sum() or 1) / 64
    for a, b in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=roundings * 2**-24, atol=roundings * 2**-24 * sizes)


@pytest.mark.parametrize("device", DEVICES)
def test_far_from_the_origin_nothing_cancels(device: str) -> None:
    """Moving a whole ray changes nothing where t, multiples of 2^-11, and sums of two stay exact."""
    weights, t_starts, t_ends, ray_indices, n_rays = samples(COUNTS)
    near = [(t * 2048).round() / 2048 for t in (t_starts, t_ends)]
    results = []
    for shift in (0.0, 2048.0):
        inputs = to(device, (weights, near[0] + shift, near[1] + shift, ray_indices, n_rays))
        results.append(distortion(*inputs))
    # The results then differ by the order of additions only.
    torch.testing.assert_close(*results, rtol=100 * 2**-24, atol=0)


def test_gradcheck() -> None:
    *floats, ray_indices, n_rays = samples([3, 0, 1, 5])
    inputs = tuple(a.double().requires_grad_() for a in floats)
    assert torch.autograd.gradcheck(lambda *a: distortion(*a, ray_indices, n_rays), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: distortion(*a, ray_indices, n_rays), inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(device: str, dtype: torch.dtype) -> None:
    weights, *rest = to(device, samples(COUNTS))
    weights = weights.to(dtype).requires_grad_()
    loss = distortion(weights, *rest)
    torch.testing.assert_close(loss, distortion(weights.detach().float(), *rest), rtol=100 * 2**-24, atol=0)
    (grad,) = torch.autograd.grad(loss.sum(), weights)
    assert grad.dtype == dtype


@pytest.mark.gpu
def test_nothing_synchronizes() -> None:
    weights, *rest = to("cuda", samples(COUNTS))
    weights.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        distortion(weights, *rest).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_errors() -> None:
    weights, t_starts, t_ends, ray_indices, n_rays = samples(COUNTS)
    with pytest.raises(ValueError, match=r"t_starts: expected shape \[151\], got \[150\]"):
        distortion(weights, t_starts[1:], t_ends, ray_indices, n_rays)
    with pytest.raises(ValueError, match=r"ray_indices: expected dtype .* got torch.float32"):
        distortion(weights, t_starts, t_ends, ray_indices.float(), n_rays)
    with pytest.raises(ValueError, match=r"weights: expected shape \[N\]"):
        distortion(weights[:, None], t_starts, t_ends, ray_indices, n_rays)
