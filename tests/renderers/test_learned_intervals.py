"""Gradients of ``rendering`` for where samples begin and end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_nerf
from lightning_nerf import nerfacc
from tests.ops.by_hand import by_hand
from tests.ops.harness import DEVICES, assert_detected, rand, to
from tests.ops.test_composite import make, tolerance
from tests.renderers.test_rendering import indices

SURFACES = {"top": lightning_nerf.rendering, "nerfacc": nerfacc.rendering}
KINDS = ["rgb_sigma_fn", "rgb_alpha_fn"]
COUNTS = [0, 7, 1, 0, 5]
N = sum(COUNTS)
PER_SAMPLE = ("weights", "trans", "alphas")


def everything(
    surface: str, kind: str, t_starts: Tensor, t_ends: Tensor, *functions: Tensor, **options: Any
) -> list[Tensor]:
    """All outputs that depend on the edges; 1-D samples are those of COUNTS."""
    absorbers, channels = functions
    if t_starts.shape == (N,):
        options |= {"ray_indices": indices(COUNTS).to(t_starts.device), "n_rays": len(COUNTS)}
    *out, extras = SURFACES[surface](t_starts, t_ends, **options, **{kind: lambda *_: (channels, absorbers)})
    return [*out, *(extras[key] for key in PER_SAMPLE[: 3 if kind == "rgb_sigma_fn" else 2])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("surface", "shape"), [("top", (N,)), ("top", (2, 3)), ("nerfacc", (2, 1, 2)), ("nerfacc", (4,))])
def test_gradcheck(surface: str, kind: str, shape: tuple[int, ...]) -> None:
    t = torch.arange(math.prod(shape)).double().view(shape)
    starts, lengths = t + 0.1 * rand(*shape, seed=1).double(), 0.5 + 0.4 * rand(*shape, seed=2).double()
    inputs = (starts, t + lengths, 0.1 + 0.7 * rand(*shape, seed=3).double(), rand(*shape, 2, seed=4).double())
    for tensor in inputs:
        tensor.requires_grad_()

    def outputs(*tensors: Tensor) -> list[Tensor]:
        return everything(surface, kind, *tensors, render_bkgd=rand(2, seed=5).double())

    assert all(o.dtype is torch.float64 for o in outputs(*inputs))
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, inputs, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_channels", [0, 1, 3, 32])
def test_they_are_those_of_a_loop(device: str, surface: str, kind: str, n_channels: int) -> None:
    densities, channels, t_starts, t_ends, offsets = args = make(COUNTS, n_channels)
    absorbers = densities / 4 if kind == "rgb_alpha_fn" else densities
    cotangents = [
        rand(*shape, seed=i, low=-1) for i, shape in enumerate([(5, n_channels), (5, 1), (5, 1), (N,), (N,), (N,)])
    ]

    def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        pairs = list(zip(outputs, cotangents, strict=False))
        loss = torch.stack([(o * c.to(o)).sum() for o, c in pairs]).sum()
        return list(torch.autograd.grad(loss, leaves))

    leaves = [t.requires_grad_() for t in to(device, (t_starts, t_ends, absorbers))]
    outputs = everything(surface, kind, *leaves, channels.to(device), expected_depths=False)
    exact = [t.double().requires_grad_() for t in (t_starts, t_ends, absorbers)]
    truth = by_hand(exact[2], channels, exact[0], exact[1], offsets, alphas_given=kind == "rgb_alpha_fn")
    by_loop = [truth.channels, truth.opacity[:, None], truth.depth[:, None], truth.weights, truth.trans, truth.alphas]
    close = tolerance(args)
    for mine, theirs in zip(outputs, by_loop, strict=False):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=close["rtol"], atol=close["atol"])
    # An optical depth's gradient sums up C + 6 terms and, for weights and trans, one for each of up to 7 samples behind it;
    # an edge's is that times a density of up to 3.
    atol = 3 * close["rtol"] * (n_channels + 6 + 2 * 7)
    expected = gradients(by_loop[: len(outputs)], exact)
    found = gradients(outputs, leaves)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=close["grad_rtol"], atol=atol)
    if kind == "rgb_sigma_fn":
        assert_detected(lambda: torch.testing.assert_close(found[0].cpu().double(), expected[1], rtol=0.01, atol=atol))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("kind", KINDS)
def test_wanting_them_changes_no_value(device: str, surface: str, kind: str) -> None:
    densities, channels, t_starts, t_ends, _ = args = to(device, make(COUNTS))
    with torch.no_grad():
        learned = t_starts.clone().requires_grad_()
        assert not any(o.requires_grad for o in everything(surface, kind, learned, t_ends, densities / 4, channels))
    plain = everything(surface, kind, t_starts, t_ends, densities / 4, channels)
    assert not any(o.requires_grad for o in plain)
    for starts, ends in ((learned, t_ends), (t_starts, t_ends.clone().requires_grad_())):
        outputs = everything(surface, kind, starts, ends, densities / 4, channels)
        for mine, theirs in zip(outputs, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance(args)["rtol"], atol=tolerance(args)["atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", SURFACES)
def test_void_and_opaque_samples(device: str, surface: str) -> None:
    """Colors of what is void or out of the light may be anything, as without gradients of edges."""
    inf, nan = float("inf"), float("nan")
    absorbers = torch.tensor([nan, -1.0, 2.0, 1.0, inf, 1.0, inf, 0.0, 1e30, 2.0, 1.0, 1.0, 1.0]).to(device)
    t_starts = torch.tensor([0.0, 1, 2, 2, 3, 4, 5, 0, 0, 0, 3, 2, 1]).to(device)
    t_ends = torch.tensor([1.0, 2, 2, 3, 4, 5, 5, 1, 1e9, 1, 2, 2, 2]).to(device)
    channels = rand(N, 3, seed=1)
    channels[[0, 1, 2, 5, 6, 10, 11]] = nan
    leaves = [t.requires_grad_() for t in (t_starts, t_ends, absorbers, channels.to(device))]
    outputs = everything(surface, "rgb_sigma_fn", *leaves)
    plain = everything(surface, "rgb_sigma_fn", *(t.detach() for t in leaves))
    for mine, theirs in zip(outputs, plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    grads = torch.autograd.grad(torch.stack([o.sum() for o in outputs]).sum(), leaves)
    assert all(g.isfinite().all() for g in grads)
    for edge in grads[:2]:
        assert not edge[[0, 1, 2, 6, 10, 11]].any()
        assert edge[3] != 0
