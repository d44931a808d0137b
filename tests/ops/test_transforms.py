"""Function transforms and forward-mode differentiation of the public functions that have derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import lightning_nerf
from lightning_nerf import nerfacc
from lightning_nerf.nerfacc.losses import distortion
from lightning_nerf.ops.composite import composite, composite_alphas
from lightning_nerf.ops.transforms import is_transformed
from tests.ops.harness import DEVICES, ragged_offsets, rand

# torch scripts its own decompositions when forward mode is first used, and deprecates that
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")

COUNTS = [3, 0, 4]
N, RAYS = 7, 3
ROWS = (3, 4)

Loss = Callable[..., Tensor]


def weigh(outputs: Any) -> Tensor:
    """A number of all floating-point outputs, of which none has a constant derivative."""
    parts = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    floats = [o for o in parts if isinstance(o, Tensor) and o.is_floating_point()]
    return sum(
        (o.square() * torch.linspace(0.5, 1.5 + i, o.numel()).to(o).view(o.shape)).sum() for i, o in enumerate(floats)
    )  # type: ignore[return-value]


def samples(*shape: int) -> list[Tensor]:
    starts = torch.arange(float(shape[-1])).expand(shape) + 0.3 * rand(*shape, seed=1)
    return [starts, starts + rand(*shape, seed=2, low=0.1, high=0.6), rand(*shape, seed=3, low=0.1, high=0.8)]


def cases(device: str) -> dict[str, tuple[Loss, list[Tensor]]]:
    """A function of tensors each of which it is differentiable in."""
    rays = torch.tensor([0, 0, 0, 2, 2, 2, 2], device=device)
    offsets = ragged_offsets(COUNTS).to(device)
    flat, rows = ([t.to(device) for t in samples(*shape)] for shape in ((N,), ROWS))
    colors, background = rand(N, 3, seed=4).to(device), rand(3, seed=5).to(device)
    where = {"ray_indices": rays, "n_rays": RAYS}

    def render(kind: str, form: dict[str, Any]) -> Loss:
        def loss(starts: Tensor, ends: Tensor, absorbers: Tensor, rgbs: Tensor, behind: Tensor) -> Tensor:
            functions = {kind: lambda *_: (rgbs, absorbers)}
            *out, extras = lightning_nerf.rendering(starts, ends, **form, **functions, render_bkgd=behind)
            return weigh([*out, extras["weights"], extras["trans"]])

        return loss

    packed_render = [*flat, colors, background]
    row_render = [*rows, rand(*ROWS, 3, seed=6).to(device), background]
    scans = (nerfacc.inclusive_sum, nerfacc.exclusive_sum, nerfacc.inclusive_prod, nerfacc.exclusive_prod)
    return {
        "composite": (
            lambda d, c: weigh(composite(d, c, flat[0], flat[1], offsets, return_weights=True)),
            [flat[2], colors],
        ),
        "composite_alphas": (lambda a, c: weigh(composite_alphas(a, c, flat[0], flat[1], offsets)), [flat[2], colors]),
        "rendering packed": (render("rgb_sigma_fn", where), packed_render),
        "rendering rows": (render("rgb_sigma_fn", {}), row_render),
        "rendering alphas": (render("rgb_alpha_fn", {}), row_render),
        "weights": (lambda *t: weigh(nerfacc.render_weight_from_density(*t, **where)), flat),
        "weights rows": (lambda *t: weigh(nerfacc.render_weight_from_density(*t)), rows),
        "weights alphas": (lambda a: weigh(nerfacc.render_weight_from_alpha(a)), [rows[2]]),
        "accumulated": (lambda w, v: weigh(nerfacc.accumulate_along_rays(w, v, **where)), [flat[2], colors]),
        "distortion": (lambda w, a, b: weigh(distortion(w, a, b, rays, RAYS)), [flat[2], flat[0], flat[1]]),
        **{f"{f.__name__} packed": (lambda x, f=f: weigh(f(x, indices=rays)), [flat[2]]) for f in scans},
        **{f"{f.__name__} rows": (lambda x, f=f: weigh(f(x)), [rows[2]]) for f in scans},
    }


NAMES = list(cases("cpu"))
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # some 30 roundings of values up to 4 in products of up to 4 factors


def plain_gradient(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    return list(torch.autograd.grad(loss(*leaves), leaves))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_differentiate_gives_the_same(device: str, name: str) -> None:
    loss, inputs = cases(device)[name]
    expected = plain_gradient(loss, inputs)
    every = tuple(range(len(inputs)))
    reverse = torch.func.grad(loss, argnums=every)(*inputs)
    forward = torch.func.jacfwd(loss, argnums=every)(*inputs)
    for plain, *others in zip(expected, reverse, forward, strict=True):
        assert plain.any()
        for other in others:
            torch.testing.assert_close(other, plain, **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_dual_numbers_keep_their_tangents(device: str, name: str) -> None:
    loss, inputs = cases(device)[name]
    expected = sum(g.sum() for g in plain_gradient(loss, inputs))
    with forward_ad.dual_level():
        out = loss(*(forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs))
        tangent = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_agree(name: str) -> None:
    loss, inputs = cases("cpu")[name]
    leaves = [t.clone().requires_grad_() for t in inputs]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(first[0].sum(), leaves[0])[0]
    hessian = torch.func.hessian(loss)(*inputs)
    n = inputs[0].numel()
    torch.testing.assert_close(hessian.view(n, n).sum(0), second.flatten(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_many_at_once(name: str) -> None:
    loss, inputs = cases("cpu")[name]
    many = torch.stack([inputs[0] * factor for factor in (1.0, 0.9)])
    rest = [None] * (len(inputs) - 1)
    mapped = torch.func.vmap(torch.func.grad(loss), (0, *rest))(many, *inputs[1:])
    for i, one in enumerate(many):
        torch.testing.assert_close(mapped[i], torch.func.grad(loss)(one, *inputs[1:]), **CLOSE)


def test_transforms_are_told_from_plain_calls() -> None:
    seen = []

    def loss(x: Tensor) -> Tensor:
        seen.append(is_transformed())
        return x.square().sum()

    x = torch.ones(2, requires_grad=True)
    loss(x).backward()
    torch.func.grad(loss)(x.detach())
    with forward_ad.dual_level():
        loss(x)
    assert seen == [False, True, True]
    assert not inspect.signature(is_transformed).parameters
