from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import rendering as plain_rendering
from lightning_nerf.nerfacc import volrend
from tests.ops.by_hand import by_hand
from tests.ops.harness import DEVICES, rand, to
from tests.ops.test_composite import COUNTS, Args, make, tolerance
from tests.ops.test_composite_alphas import alphas_of

COUNT = COUNTS["ragged"]
NAMES = ("weights", "trans", "alphas")


def indices(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))


def packed(counts: list[int]) -> Tensor:
    sizes = torch.tensor(counts, dtype=torch.int64)
    return torch.stack([sizes.cumsum(0) - sizes, sizes], dim=1)


def forms(counts: list[int], device: str) -> list[dict[str, Any]]:
    """The ways to say which samples are a ray's."""
    rays, info = indices(counts).to(device), packed(counts).to(device)
    ways: list[dict[str, Any]] = [
        {"ray_indices": rays, "n_rays": len(counts)},
        {"packed_info": info},
        {"ray_indices": rays},
    ]
    return [*ways, {"packed_info": info.int(), "n_rays": len(counts)}, {"ray_indices": rays.int(), "n_rays": len(counts)}]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ragged", "short", "long", "rays without samples", "no rays"])
def test_densities_give_what_a_loop_gives(device: str, name: str) -> None:
    counts = COUNTS[name]
    densities, _, t_starts, t_ends, _ = args = make(counts, 1)
    sigmas, starts, ends = to(device, (densities, t_starts, t_ends))
    truth, close = by_hand(*args), tolerance(args)
    for rays in forms(counts, device):
        values = volrend.render_weight_from_density(starts, ends, sigmas, **rays)
        for value, key in zip(values, NAMES, strict=True):
            torch.testing.assert_close(value.cpu().double(), getattr(truth, key), rtol=close["rtol"], atol=close["atol"])
        trans, alphas = volrend.render_transmittance_from_density(starts, ends, sigmas, **rays)
        assert torch.equal(trans, values[1])
        assert torch.equal(alphas, values[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ragged", "short", "rays without samples", "no rays"])
def test_alphas_give_what_a_loop_gives(device: str, name: str) -> None:
    counts = COUNTS[name]
    args = alphas_of(counts, 1)
    alphas = args[0].to(device)
    truth, close = by_hand(*args, alphas_given=True), tolerance(args)
    for rays in forms(counts, device):
        weights, trans = volrend.render_weight_from_alpha(alphas, **rays)
        torch.testing.assert_close(weights.cpu().double(), truth.weights, rtol=close["rtol"], atol=close["atol"])
        torch.testing.assert_close(trans.cpu().double(), truth.trans, rtol=close["rtol"], atol=close["atol"])
        assert torch.equal(volrend.render_transmittance_from_alpha(alphas, **rays), trans)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(6, 9), (2, 3, 9), (9,)])
def test_batched_samples_are_packed_ones(device: str, shape: tuple[int, ...]) -> None:
    n_rays = 1 if len(shape) == 1 else 6
    counts = [9] * n_rays
    densities, _, t_starts, t_ends, _ = to(device, make(counts, 1))
    alphas = -torch.expm1(-densities)
    rays = {"ray_indices": indices(counts).to(device), "n_rays": n_rays}
    pairs: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
        (volrend.render_weight_from_density, (t_starts, t_ends, densities)),
        (volrend.render_transmittance_from_density, (t_starts, t_ends, densities)),
        (volrend.render_visibility_from_density, (t_starts, t_ends, densities)),
        (volrend.render_weight_from_alpha, (alphas,)),
        (volrend.render_transmittance_from_alpha, (alphas,)),
        (volrend.render_visibility_from_alpha, (alphas,)),
    ]
    for function, arguments in pairs:
        for prefix in (None, rand(9 * n_rays, seed=4).to(device)):
            flat = function(*arguments, **rays, prefix_trans=prefix)
            batched = function(
                *(a.view(shape) for a in arguments), prefix_trans=None if prefix is None else prefix.view(shape)
            )
            flat, batched = (o if isinstance(o, tuple) else (o,) for o in (flat, batched))
            for a, b in zip(flat, batched, strict=True):
                assert b.shape == shape
                assert torch.equal(a, b.reshape(-1))


@pytest.mark.parametrize("device", DEVICES)
def test_a_prefix_multiplies_transmittance_and_weights(device: str) -> None:
    densities, _, t_starts, t_ends, _ = make(COUNT, 1)
    prefix = rand(len(densities), seed=8).to(device).requires_grad_()
    rays = {"packed_info": packed(COUNT).to(device)}
    starts, ends, sigmas = to(device, (t_starts, t_ends, densities))
    plain = volrend.render_weight_from_density(starts, ends, sigmas, **rays)
    weights, trans, alphas = volrend.render_weight_from_density(starts, ends, sigmas, **rays, prefix_trans=prefix)
    torch.testing.assert_close(trans, plain[1] * prefix, rtol=0, atol=0)
    torch.testing.assert_close(weights, plain[0] * prefix, rtol=0, atol=0)
    assert torch.equal(alphas, plain[2])
    (grad,) = torch.autograd.grad(weights.sum(), prefix)
    assert torch.equal(grad, plain[0])
    visible = volrend.render_visibility_from_density(
        starts, ends, sigmas, **rays, early_stop_eps=0.2, alpha_thre=0.1, prefix_trans=prefix
    )
    assert torch.equal(visible, (trans >= 0.2) & (alphas >= 0.1))
    assert visible.any()
    assert not visible.all()


@pytest.mark.parametrize("device", DEVICES)
def test_visibility_has_inclusive_thresholds(device: str) -> None:
    alphas = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.25]).to(device)
    rays = torch.tensor([0, 0, 0, 1, 1]).to(device)
    see = volrend.render_visibility_from_alpha
    assert see(alphas, ray_indices=rays, early_stop_eps=0.5).tolist() == [True, True, False, True, True]
    assert see(alphas, ray_indices=rays, alpha_thre=0.25).tolist() == [True, True, True, False, True]
    assert see(alphas, ray_indices=rays, early_stop_eps=0.5, alpha_thre=0.3).tolist() == [True, True, False, False, False]
    assert not see(alphas.requires_grad_(), ray_indices=rays).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_a_loop(device: str) -> None:
    counts = [0, 7, 1, 0, 30]
    args = make(counts, 1)
    cotangents = [rand(38, seed=i, low=-1) for i in range(3)]
    rays = {"ray_indices": indices(counts).to(device), "n_rays": 5}

    def check(args: Args, function: Callable[[Tensor], tuple[Tensor, ...]], **options: Any) -> None:
        leaf, exact = args[0].to(device).requires_grad_(), args[0].double().requires_grad_()
        outputs = function(leaf)
        truth = by_hand(exact, *args[1:], **options)
        mine = torch.autograd.grad(outputs, leaf, [c.to(device) for c in cotangents[: len(outputs)]])[0]
        names = NAMES[: len(outputs)]
        theirs = torch.autograd.grad(
            [getattr(truth, n) for n in names], exact, [c.double() for c in cotangents[: len(names)]]
        )[0]
        close = tolerance(args)
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=close["grad_rtol"], atol=30 * close["rtol"])

    starts, ends = to(device, args[2:4])
    check(args, lambda sigmas: volrend.render_weight_from_density(starts, ends, sigmas, **rays))
    check(alphas_of(counts, 1), lambda alphas: volrend.render_weight_from_alpha(alphas, **rays), alphas_given=True)


@pytest.mark.parametrize("device", DEVICES)
def test_intervals_that_are_learned_get_gradients(device: str) -> None:
    """The op gives none; NerfAcc's densities do."""
    counts = [4, 0, 6]
    args = make(counts, 1)
    leaves = [a.to(device).requires_grad_() for a in (args[2], args[3], args[0])]
    rays = {"ray_indices": indices(counts).to(device), "n_rays": 3}
    weights, trans, alphas = volrend.render_weight_from_density(*leaves, **rays)
    grads = torch.autograd.grad((weights * 2 + trans + alphas).sum(), leaves)
    exact = [a.double().requires_grad_() for a in (args[2], args[3], args[0])]
    truth = by_hand(exact[2], args[1], exact[0], exact[1], args[4])
    expected = torch.autograd.grad((truth.weights * 2 + truth.trans + truth.alphas).sum(), exact)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=1e-5, atol=10 * 2**-22)


@pytest.mark.parametrize("device", DEVICES)
def test_values_are_accumulated(device: str) -> None:
    counts = [0, 3, 2, 0]
    weights, values = rand(5, seed=1).to(device).requires_grad_(), rand(5, 2, seed=2).to(device).requires_grad_()
    rays = indices(counts).to(device)
    out = volrend.accumulate_along_rays(weights, values, rays, 4)
    expected = torch.stack([(weights[rays == r, None] * values[rays == r]).sum(0) for r in range(4)])
    torch.testing.assert_close(out, expected)
    order = torch.tensor([3, 0, 4, 2, 1], device=device)
    torch.testing.assert_close(volrend.accumulate_along_rays(weights[order], values[order], rays[order], 4), out)
    alone = volrend.accumulate_along_rays(weights, ray_indices=rays.int(), n_rays=4)
    torch.testing.assert_close(alone[:, 0], torch.stack([weights[rays == r].sum() for r in range(4)]))
    grads = torch.autograd.grad(out.sum(), [weights, values])
    torch.testing.assert_close(grads[0], values.sum(1))
    torch.testing.assert_close(grads[1], weights[:, None].expand(5, 2))
    batched = volrend.accumulate_along_rays(rand(3, 4, seed=1), rand(3, 4, 2, seed=2))
    torch.testing.assert_close(batched, (rand(3, 4, seed=1)[..., None] * rand(3, 4, 2, seed=2)).sum(1))
    assert volrend.accumulate_along_rays(rand(3, 4, seed=1)).shape == (3, 1)
    outputs = torch.ones(4, 2, device=device)
    with torch.no_grad():
        volrend.accumulate_along_rays_(weights, values, rays, outputs)
        torch.testing.assert_close(outputs, 1 + out)
        outputs = torch.ones(3, 1)
        volrend.accumulate_along_rays_(rand(3, 4, seed=1), None, None, outputs)
    torch.testing.assert_close(outputs[:, 0], 1 + rand(3, 4, seed=1).sum(1))


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_at_all(device: str) -> None:
    none = torch.zeros(0, device=device, requires_grad=True)
    rays = torch.zeros(0, dtype=torch.int64, device=device)
    for ways in ({"ray_indices": rays, "n_rays": 3}, {"ray_indices": rays}, {"packed_info": rays.view(0, 2)}):
        outs = volrend.render_weight_from_density(none, none.detach(), none, **ways)
        assert [o.shape for o in outs] == [(0,)] * 3
        assert volrend.render_weight_from_alpha(none, **ways)[0].grad_fn is not None
        assert volrend.render_visibility_from_alpha(none, **ways).dtype is torch.bool
    summed = volrend.accumulate_along_rays(none, None, rays, 3)
    assert summed.shape == (3, 1)
    summed.sum().backward()
    assert volrend.render_weight_from_alpha(torch.zeros(4, 0, device=device))[0].shape == (4, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_rendering_is_the_plain_one(device: str) -> None:
    densities, channels, t_starts, t_ends, _ = to(device, make(COUNT))
    rays = indices(COUNT).to(device)

    def run(function: Any, **options: Any) -> Any:
        return function(t_starts, t_ends, rays, len(COUNT), lambda *_: (channels, densities), **options)

    background = rand(3, seed=1).to(device)
    for behind in (None, background, rand(len(COUNT), 3, seed=2).to(device)):
        mine, plain = (run(f, render_bkgd=behind) for f in (volrend.rendering, plain_rendering))
        assert all(torch.equal(a, b) for a, b in zip(mine[:3], plain[:3], strict=True))
        assert set(mine[3]) == {*NAMES, "sigmas", "rgbs"}
    black = run(plain_rendering)
    integers = [torch.ones(3, dtype=dtype, device=device) for dtype in (torch.int64, torch.uint8, torch.bool)]
    ones = [torch.ones(shape, device=device) for shape in ((), (1,), (1, 3))]
    for broadcast in (*ones, *integers, 1.0, 1):
        torch.testing.assert_close(run(volrend.rendering, render_bkgd=broadcast)[0], black[0] + (1 - black[1]))
    both = volrend.rendering(t_starts, t_ends, rays, len(COUNT), lambda *_: (channels, densities), lambda *_: None)
    assert torch.equal(both[0], black[0])
    accumulated = run(volrend.rendering, expected_depths=False)[2]
    torch.testing.assert_close(accumulated, black[2] * black[1].clamp_min(torch.finfo(torch.float32).eps))


def test_signatures_are_nerfaccs() -> None:
    rays = ["packed_info", "ray_indices", "n_rays"]
    expected = {
        "rendering": ["t_starts", "t_ends", "ray_indices", "n_rays", "rgb_sigma_fn", "rgb_alpha_fn", "render_bkgd"],
        "render_transmittance_from_alpha": ["alphas", *rays, "prefix_trans"],
        "render_transmittance_from_density": ["t_starts", "t_ends", "sigmas", *rays, "prefix_trans"],
        "render_weight_from_alpha": ["alphas", *rays, "prefix_trans"],
        "render_weight_from_density": ["t_starts", "t_ends", "sigmas", *rays, "prefix_trans"],
        "render_visibility_from_alpha": ["alphas", *rays, "early_stop_eps", "alpha_thre", "prefix_trans"],
        "render_visibility_from_density": [
            *["t_starts", "t_ends", "sigmas", *rays],
            *["early_stop_eps", "alpha_thre", "prefix_trans"],
        ],
        "accumulate_along_rays": ["weights", "values", "ray_indices", "n_rays"],
        "accumulate_along_rays_": ["weights", "values", "ray_indices", "outputs"],
    }
    assert set(expected) == set(volrend.__all__)
    for name, arguments in expected.items():
        parameters = inspect.signature(getattr(volrend, name)).parameters
        assert list(parameters)[: len(arguments)] == arguments
    assert inspect.signature(volrend.render_visibility_from_alpha).parameters["early_stop_eps"].default == 1e-4


def test_bad_arguments_are_named() -> None:
    alphas = rand(5, seed=1)
    for ways, message in [
        ({"ray_indices": torch.tensor([0, 1, 0, 1, 1]), "n_rays": 2}, "ray_indices: expected indices that never fall"),
        ({"ray_indices": torch.zeros(4, dtype=torch.int64), "n_rays": 2}, r"ray_indices: expected shape \[5\]"),
        ({"packed_info": torch.tensor([[0, 2], [3, 2]])}, "packed_info: expected rays that follow one another"),
        ({"packed_info": torch.tensor([[0, 2], [2, 4]])}, "packed_info: .* within 5 samples"),
        ({"packed_info": torch.tensor([0, 2, 5])}, r"packed_info: expected shape \[R, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            volrend.render_weight_from_alpha(alphas, **ways)
    with pytest.raises(ValueError, match=r"expected samples of shape \[N\] with packed_info or ray_indices, got \[5, 1\]"):
        volrend.render_weight_from_alpha(alphas[:, None], ray_indices=torch.zeros(5, dtype=torch.int64), n_rays=1)
    with pytest.raises(ValueError, match=r"t_ends: expected the shape of sigmas, \[5\], got \[4\]"):
        volrend.render_weight_from_density(alphas, alphas[:4], alphas)
    with pytest.raises(ValueError, match="n_rays: expected a number"):
        volrend.accumulate_along_rays(alphas, None, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"values: expected shape \[5, 'D'\], got \[5\]"):
        volrend.accumulate_along_rays(alphas, alphas)
    with pytest.raises(ValueError, match="outputs: expected a tensor, got None"):
        volrend.accumulate_along_rays_(alphas)


@pytest.mark.gpu
def test_samples_of_no_ray_are_left_out_on_cuda() -> None:
    weights, values = torch.ones(4, device="cuda"), torch.full((4, 2), 3.0, device="cuda")
    indices, expected = torch.tensor([-1, 0, 1, 2], device="cuda"), torch.full((2, 2), 3.0, device="cuda")
    torch.testing.assert_close(volrend.accumulate_along_rays(weights, values, indices, 2), expected)
    outputs = torch.zeros(2, 2, device="cuda")
    volrend.accumulate_along_rays_(weights, values, indices, outputs)
    torch.testing.assert_close(outputs, expected)
