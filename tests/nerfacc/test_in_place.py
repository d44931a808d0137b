"""A tensor that is changed in place between a call and its backward pass: the right gradient, or torch's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import nerfacc
from lightning_nerf.nerfacc.losses import distortion
from tests.ops.harness import rand

N = 6
RAYS = torch.tensor([0, 0, 1, 1, 1, 1])
INFO = torch.tensor([[0, 2], [2, 4]])
Call = tuple[Callable[..., Any], dict[str, Tensor]]


def calls() -> dict[str, Call]:
    t = torch.arange(float(N))
    floats = {
        "t_starts": t,
        "t_ends": t + 0.5,
        "sigmas": rand(N, seed=1),
        "rgbs": rand(N, 3, seed=2),
        "behind": rand(3, seed=3),
    }
    alphas = {"alphas": rand(N, seed=1), "ray_indices": RAYS.clone()}

    def render(t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, rgbs: Tensor, behind: Tensor, rays: Tensor) -> Any:
        return nerfacc.rendering(t_starts, t_ends, rays, 2, lambda *_: (rgbs, sigmas), render_bkgd=behind)[:3]

    density = {k: floats[k] for k in ("t_starts", "t_ends", "sigmas")}
    return {
        "rendering": (render, {**floats, "rays": RAYS.clone()}),
        "weights": (nerfacc.render_weight_from_density, {**density, "ray_indices": RAYS.clone()}),
        "weights from alphas": (nerfacc.render_weight_from_alpha, alphas),
        "accumulate": (
            lambda w, v, r: nerfacc.accumulate_along_rays(w, v, r, 2),
            {"w": rand(N, seed=4), "v": rand(N, 3, seed=5), "r": RAYS.clone()},
        ),
        "distortion": (
            lambda w, a, b, r: distortion(w, a, b, r, 2),
            {"w": rand(N, seed=4), "a": t, "b": t + 0.5, "r": RAYS.clone()},
        ),
        "sums": (nerfacc.exclusive_sum, {"inputs": rand(N, seed=6), "packed_info": INFO.clone()}),
        "products": (nerfacc.inclusive_prod, {"inputs": rand(N, seed=6), "packed_info": INFO.clone()}),
    }


def total(outputs: Any) -> Tensor:
    parts = [outputs] if isinstance(outputs, Tensor) else outputs
    return sum((p.square()).sum() for p in parts)  # type: ignore[return-value]


def gradients(call: Call, changed: str | None) -> list[Tensor]:
    function, arguments = call
    given = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in arguments.items()}
    used = {k: v * 1 if v.is_floating_point() else v for k, v in given.items()}  # none a leaf
    loss = total(function(*used.values()) if "rays" in used or "r" in used else function(**used))
    if changed is not None:
        with torch.no_grad():
            used[changed].mul_(0)
    return list(torch.autograd.grad(loss, [v for v in given.values() if v.requires_grad]))


@pytest.mark.parametrize(("name", "changed"), [(n, a) for n, (_, arguments) in calls().items() for a in arguments])
def test_an_argument_that_is_changed_is_told_or_does_not_matter(name: str, changed: str) -> None:
    expected = gradients(calls()[name], None)
    try:
        found = gradients(calls()[name], changed)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
        return
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("learned", ["t_starts", "rgbs"])
def test_results_of_rendering_may_be_changed_after_their_use(which: int, learned: str) -> None:
    """Colors and depths, as NerfAcc's; opacities divide the depths, there as here."""
    function, arguments = calls()["rendering"]
    out = function(*(v.clone().requires_grad_(name in (learned, "sigmas")) for name, v in arguments.items()))
    loss = total(o * 1.0 for o in out)
    with torch.no_grad():
        out[which].zero_()
    if which == 1:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()


def test_indices_that_fall_are_refused_with_a_remedy() -> None:
    """NerfAcc 0.5.3 is wrong there in silence. On CUDA, where no order is looked at, runs would be too."""
    alphas, falling = rand(4, seed=1), torch.tensor([1, 1, 0, 0])
    for call in (
        lambda rays: nerfacc.render_weight_from_alpha(alphas, ray_indices=rays, n_rays=2),
        lambda rays: nerfacc.rendering(alphas, alphas + 1, rays, 2, lambda *_: (torch.ones(4, 3), alphas)),
    ):
        with pytest.raises(ValueError, match=r"ray_indices: expected indices that never fall; sort .*argsort"):
            call(falling)
    order = falling.argsort(stable=True)
    weights = nerfacc.render_weight_from_alpha(alphas[order], ray_indices=falling[order], n_rays=2)[0]
    trans = nerfacc.exclusive_prod(1 - alphas, indices=falling)  # takes runs in any order
    torch.testing.assert_close(weights, (trans * alphas)[order])
