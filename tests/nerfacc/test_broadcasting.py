"""Density functions take what ``sigmas * (t_ends - t_starts)`` takes; thresholds and limits may be one number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf import nerfacc
from tests.nerfacc.occ_grids import estimator, random_rays
from tests.nerfacc.peer import pure_nerfacc
from tests.ops.harness import DEVICES, rand

R, S = 3, 5
T = torch.arange(float(S + 1)) / 4
FUNCTIONS = ("render_weight_from_density", "render_transmittance_from_density", "render_visibility_from_density")

FORMS: dict[str, tuple[Any, Any, Any]] = {
    "one row of edges": (T[:-1], T[1:], rand(R, S, seed=1)),
    "one row of densities": (T[:-1].expand(R, S), T[1:].expand(R, S), rand(S, seed=1)),
    "a length for each ray": (torch.zeros(R, 1), rand(R, 1, seed=2), rand(R, S, seed=1)),
    "a tensor without dimensions": (torch.tensor(0.0), torch.tensor(0.25), rand(R, S, seed=1)),
    "numbers": (0.0, 0.25, rand(R, S, seed=1)),
    "integers": (0, 1, rand(R, S, seed=1)),
    "numbers of numpy": (np.float64(0.0), np.float32(0.25), rand(R, S, seed=1)),
    "one density": (T[:-1], T[1:], 0.7),
    "a density without dimensions": (T[:-1], T[1:], torch.tensor(0.7)),
    "an outer product": (torch.zeros(R, 1, 1), rand(2, 1, seed=2), rand(S, seed=1)),
}


def to(device: str, form: tuple[Any, ...]) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else value for value in form]


def flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_broadcast_as_in_nerfacc(device: str, name: str, form: str) -> None:
    peer, given = pure_nerfacc(), FORMS[form]
    options = {"early_stop_eps": 0.5} if "visibility" in name else {}
    ours, theirs = (getattr(package, name)(*to(device, given), **options) for package in (nerfacc, peer))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype is (torch.float32 if b.is_floating_point() else b.dtype)
        torch.testing.assert_close(a, b.to(a.dtype))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_summed_over_what_was_broadcast(form: str) -> None:
    grads = []
    for package in (nerfacc, pure_nerfacc()):
        leaves = [v.clone().requires_grad_() if isinstance(v, Tensor) else v for v in FORMS[form]]
        weights = package.render_weight_from_density(*leaves)[0]
        loss = (weights * torch.linspace(0, 1, weights.numel()).view(weights.shape)).sum()
        grads.append(torch.autograd.grad(loss, [v for v in leaves if isinstance(v, Tensor)]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_packed_samples_of_one_length() -> None:
    sigmas, rays = rand(S, seed=1), torch.tensor([0, 0, 1, 1, 1])
    expected = nerfacc.render_weight_from_density(torch.zeros(S), torch.full((S,), 0.25), sigmas, ray_indices=rays)
    for start, end in ((0.0, 0.25), (torch.tensor(0.0), torch.tensor([0.25])), (torch.zeros(S), 0.25)):
        for a, b in zip(nerfacc.render_weight_from_density(start, end, sigmas, ray_indices=rays), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_number_may_be_on_the_host() -> None:
    sigmas = rand(S, seed=1).cuda()
    weights = nerfacc.render_weight_from_density(torch.tensor(0.0), torch.tensor(0.25), sigmas)[0]
    assert torch.equal(weights, nerfacc.render_weight_from_density(0.0, 0.25, sigmas)[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (T[:3], T[1:], rand(R, S, seed=1)),
            r"t_starts: expected the shape of sigmas, \[3, 5\], got \[3\]",
        ),
        ((T[:-1], rand(2, 1, seed=2), rand(R, S, seed=1)), r"t_ends: expected the shape of sigmas"),
        ((0.0, 1.0, 0.5), "t_starts: expected a tensor beside two numbers, got float"),
        (("0", T[1:], T[1:]), "t_starts: expected a tensor or a number, got str"),
        ((T[:-1], None, T[1:]), "t_ends: expected a tensor or a number, got NoneType"),
        ((0.0, 1.0, torch.tensor(0.5)), r"sigmas: expected floats of shape .* got torch.float32 of \[\]"),
    ],
)
def test_what_does_not_broadcast_is_named(given: tuple[Any, ...], message: str) -> None:
    for name in FUNCTIONS:
        with pytest.raises(ValueError, match=message):
            getattr(nerfacc, name)(*given)


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_rays_may_be_one_number(device: str) -> None:
    grid = estimator(device, share=0.5)
    rays = random_rays(device)
    n = len(rays[0])

    def sampled(low: Any, high: Any) -> list[Tensor]:
        return list(grid.sampling(*rays, t_min=low, t_max=high, near_plane=0.2, render_step_size=0.1))

    expected = sampled(torch.full((n,), 0.5, device=device), torch.full((n,), 2.5, device=device))
    assert len(expected[0]) > 100
    for convert in (float, torch.tensor, np.float32, lambda t: torch.tensor([t], dtype=torch.float64)):
        limits = [v.to(device) if isinstance(v := convert(t), Tensor) else v for t in (0.5, 2.5)]
        for a, b in zip(sampled(*limits), expected, strict=True):
            assert torch.equal(a, b)
    wrong_limits = torch.zeros(2), torch.zeros(n, 1), torch.zeros((), dtype=torch.complex64)
    for wrong in ("1", *(t.to(device) for t in wrong_limits)):
        with pytest.raises(ValueError, match="t_min: expected"):
            sampled(wrong, 2.5)


@pytest.mark.parametrize("device", DEVICES)
def test_thresholds_may_be_tensors_of_one_element(device: str) -> None:
    grid = estimator(device, share=0.5)
    grid.occs.fill_(1.0)
    rays = random_rays(device)
    alphas = rand(R, S, seed=1).to(device)
    values = lambda t, *_: torch.linspace(0, 4, len(t), device=device)  # noqa: E731
    expected = grid.sampling(*rays, values, render_step_size=0.1, alpha_thre=0.2, early_stop_eps=0.1)
    seen = nerfacc.render_visibility_from_alpha(alphas, early_stop_eps=0.1, alpha_thre=0.2)
    assert seen.any()
    assert not seen.all()
    for shape in ((), (1,), (1, 1)):
        eps, thre = (torch.full(shape, value, device=device) for value in (0.1, 0.2))
        for a, b in zip(
            grid.sampling(*rays, values, render_step_size=0.1, alpha_thre=thre, early_stop_eps=eps), expected, strict=True
        ):
            assert torch.equal(a, b)
        assert torch.equal(nerfacc.render_visibility_from_alpha(alphas, early_stop_eps=eps, alpha_thre=thre), seen)
    with pytest.raises(ValueError, match=r"alpha_thre: expected a number or a tensor of one element, got \[2, 1\]"):
        nerfacc.render_visibility_from_alpha(alphas, alpha_thre=torch.ones(2, 1, device=device))
    with pytest.raises(ValueError, match=r"alpha_thre: expected a number or a tensor of one element, got \[2\]"):
        grid.sampling(*rays, values, alpha_thre=torch.ones(2, device=device))
