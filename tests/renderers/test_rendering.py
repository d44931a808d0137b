from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_nerf
from lightning_nerf import rendering
from tests.ops.by_hand import by_hand
from tests.ops.harness import DEVICES, rand, to
from tests.ops.test_composite import COUNTS, Args, make, tolerance

PACKED = ["ragged", "short", "long", "one ray"]


def indices(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))


def render(args: Args, counts: list[int], device: str = "cpu", **options: Any) -> Any:
    """``rendering`` of samples whose densities and colors are known."""
    densities, channels, t_starts, t_ends, _ = to(device, args)
    function = options.pop("function", lambda *_: (channels, densities))
    return rendering(t_starts, t_ends, indices(counts).to(device), len(counts), function, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [1, 3, 7, 40])
@pytest.mark.parametrize("per_ray", [None, False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_samples_are_rendered_as_by_a_loop(device: str, name: str, per_ray: bool | None, n_channels: int) -> None:
    counts = COUNTS[name]
    args = make(counts, n_channels)
    background = None if per_ray is None else rand(*([len(counts)] if per_ray else []), n_channels, seed=9)
    behind = None if background is None else background.to(device)
    colors, opacities, depths, extras = render(args, counts, device, render_bkgd=behind, expected_depths=False)
    truth, close = by_hand(*args), tolerance(args)
    expected = truth.channels if background is None else truth.channels + (1 - truth.opacity)[:, None] * background
    everything = [(colors, expected), (opacities, truth.opacity[:, None]), (depths, truth.depth[:, None])]
    everything += [(extras[key], getattr(truth, key)) for key in ("weights", "trans", "alphas")]
    for value, exact in everything:
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.cpu().double(), exact, rtol=close["rtol"], atol=2 * close["atol"])
    assert torch.equal(extras["rgbs"].cpu(), args[1])
    assert torch.equal(extras["sigmas"].cpu(), args[0])


@pytest.mark.parametrize("device", DEVICES)
def test_expected_depths_are_divided_by_the_opacity(device: str) -> None:
    args, counts = make(COUNTS["ragged"]), COUNTS["ragged"]
    _, opacities, plain, _ = render(args, counts, device, expected_depths=False)
    depths = render(args, counts, device)[2]
    assert torch.equal(depths, plain / opacities.clamp_min(torch.finfo(torch.float32).eps))
    assert depths.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 4)])
def test_batched_samples_are_packed_ones(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n_rays = 5 if len(shape) == 2 else 6
    args = to(device, make([shape[-1]] * n_rays))
    densities, channels, t_starts, t_ends, _ = args
    asked = []

    def function(starts: Tensor, ends: Tensor, ray_indices: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        asked.append((starts.shape, ends.shape, None if ray_indices is None else ray_indices.dtype))
        rgbs = channels.view(*starts.shape, 3)
        return rgbs, densities.view(starts.shape), {"twice": 2 * rgbs[..., :2]}

    packed = rendering(t_starts, t_ends, indices([shape[-1]] * n_rays).to(device, dtype), n_rays, function)
    batched = rendering(t_starts.view(shape), t_ends.view(shape), rgb_sigma_fn=function)
    assert asked == [((len(densities),), (len(densities),), dtype), (shape, shape, None)]
    for a, b in zip(packed[:3], batched[:3], strict=True):
        assert b.shape[:-1] == shape[:-1]
        assert torch.equal(a, b.reshape(a.shape))
    for name, value in batched[3].items():
        assert value.shape[:-1] == (shape[:-1] if name in ("rgbs", "twice") else shape)[: value.ndim - 1] or name == "rgbs"
        assert torch.equal(value.reshape(packed[3][name].shape), packed[3][name])
    torch.testing.assert_close(batched[3]["twice"], 2 * batched[0][..., :2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 9])
def test_one_ray_needs_no_indices(device: str, n: int) -> None:
    densities, channels, t_starts, t_ends, _ = to(device, make([n]))
    background = rand(3, seed=1).to(device)
    packed, alone = (
        rendering(t_starts, t_ends, *where, lambda *_: (channels, densities), render_bkgd=background)
        for where in ((indices([n]).to(device), 1), (None, None))
    )
    for a, b in zip(packed[:3], alone[:3], strict=True):
        assert torch.equal(a[0], b)
    for name, value in alone[3].items():
        assert torch.equal(value, packed[3][name])


@pytest.mark.parametrize("device", DEVICES)
def test_alphas_are_rendered_as_by_a_loop(device: str) -> None:
    counts = COUNTS["ragged"]
    densities, channels, t_starts, t_ends, offsets = args = make(counts)
    alphas = (densities / 4).to(device).requires_grad_()
    colors, opacities, depths, extras = rendering(
        *to(device, (t_starts, t_ends, indices(counts))),
        len(counts),
        rgb_alpha_fn=lambda *_: (channels.to(device), alphas),
        expected_depths=False,
    )
    leaf = (densities / 4).requires_grad_()
    truth, close = by_hand(leaf, *args[1:], alphas_given=True), tolerance(args)
    for value, exact in [(colors, truth.channels), (opacities[:, 0], truth.opacity), (depths[:, 0], truth.depth)]:
        torch.testing.assert_close(value.cpu().double(), exact, rtol=close["rtol"], atol=close["atol"])
    assert extras["alphas"] is alphas
    assert set(extras) == {"weights", "trans", "alphas", "rgbs"}
    assert offsets[-1] == len(extras["weights"])
    (colors.sum() + extras["weights"].pow(2).sum()).backward()
    (truth.channels.sum() + truth.weights.pow(2).sum()).backward()
    torch.testing.assert_close(alphas.grad.cpu(), leaf.grad, rtol=close["grad_rtol"], atol=200 * close["rtol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_channels", [2, 3, 33])
def test_gradients_of_everything_at_once(device: str, n_channels: int) -> None:
    counts = [0, 7, 1, 0, 40]
    args = make(counts, n_channels)
    normals, background = rand(48, 3, seed=5, low=-1), rand(n_channels, seed=6)

    def loss(out: tuple[Tensor, Tensor, Tensor], extras: dict[str, Tensor]) -> Tensor:
        per_sample = sum((extras[key] * rand(48, seed=i).to(extras[key])).sum() for i, key in enumerate(names))
        return sum(o.sum() for o in out) + extras["normals"].pow(2).sum() + per_sample  # type: ignore[return-value]

    names = ("weights", "trans", "alphas")
    leaves = [a.to(device).requires_grad_() for a in (args[0], args[1], normals, background)]
    *out, extras = render(
        args,
        counts,
        device,
        function=lambda *_: (leaves[1], leaves[0], {"normals": leaves[2]}),
        render_bkgd=leaves[3],
        expected_depths=False,
    )
    grads = torch.autograd.grad(loss(tuple(out), extras), leaves)
    exact = [a.double().requires_grad_() for a in (args[0], args[1], normals, background)]
    truth = by_hand(exact[0], torch.cat([exact[1], exact[2]], 1), *args[2:])
    colors = truth.channels[:, :n_channels] + (1 - truth.opacity)[:, None] * exact[3]
    by_name = {"normals": truth.channels[:, n_channels:]} | {key: getattr(truth, key) for key in names}
    expected = torch.autograd.grad(loss((colors, truth.opacity, truth.depth), by_name), exact)
    close = tolerance(args)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=close["grad_rtol"], atol=2 * close["grad_atol"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_without_samples_the_background_shows(device: str, shape: tuple[int, ...]) -> None:
    t = torch.zeros(shape, device=device)
    packed = {"ray_indices": torch.zeros(0, dtype=torch.int64, device=device), "n_rays": 3} if len(shape) == 1 else {}
    n_rays = packed.get("n_rays", shape[0])
    background = rand(5, seed=1).to(device).requires_grad_()

    def never(*_: Any) -> Any:
        raise AssertionError("called without samples")

    for kind in ("rgb_sigma_fn", "rgb_alpha_fn"):
        colors, opacities, depths, extras = rendering(t, t, **packed, **{kind: never}, render_bkgd=background)
        assert colors.shape == (n_rays, 5)
        assert torch.equal(colors, background.expand(n_rays, 5))
        assert opacities.shape == depths.shape == (n_rays, 1)
        assert not opacities.any()
        assert not depths.any()
        assert extras["weights"].shape == shape
        (grad,) = torch.autograd.grad(colors.sum() + opacities.sum() + depths.sum(), background)
        assert torch.equal(grad, torch.full_like(grad, n_rays))
    plain = rendering(t, t, **packed, rgb_sigma_fn=never)
    assert plain[0].shape == (n_rays, 3)
    sum(o.sum() for o in plain[:3]).backward()
    with torch.no_grad():
        assert not rendering(t, t, **packed, rgb_sigma_fn=never)[0].requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_rays_that_miss_show_the_background_exactly(device: str) -> None:
    counts = [0, 3, 0]
    background = rand(3, 3, seed=1).to(device)
    colors, opacities, depths, _ = render(make(counts), counts, device, render_bkgd=background)
    assert torch.equal(colors[[0, 2]], background[[0, 2]])
    assert not opacities[[0, 2]].any()
    assert not depths[[0, 2]].any()


@pytest.mark.parametrize("device", DEVICES)
def test_strange_densities_and_intervals_give_finite_results(device: str) -> None:
    densities = torch.tensor([float("nan"), 1.0, float("inf"), 2.0, -3.0, 0.5, 1e-3]).to(device).requires_grad_()
    t_starts = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0]).to(device)
    t_ends = torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1e9]).to(device)
    colors = rand(7, 3, seed=2).to(device)
    out = rendering(t_starts, t_ends, indices([4, 3]).to(device), 2, lambda *_: (colors, densities))
    assert all(o.isfinite().all() for o in [*out[:3], *(out[3][key] for key in ("weights", "trans", "alphas"))])
    assert out[1][0].item() == 1
    sum(o.sum() for o in out[:3]).backward()
    assert densities.grad is not None
    assert densities.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_views_are_accepted(device: str, dtype: torch.dtype) -> None:
    counts = COUNTS["ragged"]
    densities, channels, t_starts, t_ends, _ = args = to(device, make(counts))
    halves = [a.to(dtype).requires_grad_() for a in (densities, channels)]
    strided = [torch.stack([t, t], 1)[:, 1] for t in (t_starts, t_ends)]
    out = rendering(*strided, indices(counts).to(device), len(counts), lambda *_: (halves[1], halves[0]))
    same = render(tuple(h.detach().float() for h in halves) + args[2:], counts, device)  # type: ignore[arg-type]
    for a, b in zip(out[:3], same[:3], strict=True):
        assert torch.equal(a, b)
    out[0].sum().backward()
    assert [h.grad.dtype for h in halves] == [dtype] * 2  # type: ignore[union-attr]


def test_float64_is_rendered_in_float64() -> None:
    counts = [3, 0, 4]
    args = make(counts)
    doubles = [a.double().requires_grad_() for a in args[:2]]
    out = render(args, counts, function=lambda *_: (doubles[1], doubles[0]), render_bkgd=torch.ones(3).double())
    assert [o.dtype for o in out[:3]] == [torch.float64] * 3
    times = [t.double().view(1, 7) for t in args[2:4]]

    def batched(density: Tensor, color: Tensor) -> Tensor:
        return rendering(*times, rgb_sigma_fn=lambda *_: (color.view(1, 7, 3), density.view(1, 7)))[0]

    assert torch.autograd.gradcheck(batched, tuple(doubles))


def test_it_is_exported() -> None:
    assert lightning_nerf.rendering is rendering
    assert "rendering" in lightning_nerf.__all__


def test_bad_arguments_are_named() -> None:
    counts = [3, 2]
    densities, channels, t_starts, t_ends, _ = args = make(counts)
    rays = indices(counts)

    def returns(*result: Any) -> Any:
        return lambda *_: result

    good = returns(channels, densities)
    for function, message in [
        (returns(channels), "rgb_sigma_fn: expected it to return two or three things"),
        (lambda *_: densities, "rgb_sigma_fn: expected it to return two or three things, got Tensor"),
        (returns(channels, densities[:, None]), r"expected its second result to have shape \[5\], got \[5, 1\]"),
        (returns(channels[:4], densities), r"expected rgbs of shape \[5, 'C'\], got \[4, 3\]"),
        (returns(channels, densities, {"a": densities}), r"expected a of shape \[5, 'C'\], got \[5\]"),
        (returns(channels, densities, {"weights": channels}), "expected other names than .* got weights"),
        (returns(channels.to("meta"), densities), r"rgb_sigma_fn: expected rgbs on cpu .* got meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            render(args, counts, function=function)
    for options, message in [
        ({"rgb_sigma_fn": None}, "rgb_sigma_fn, rgb_alpha_fn: expected exactly one"),
        ({"rgb_alpha_fn": good}, "rgb_sigma_fn, rgb_alpha_fn: expected exactly one"),
        ({"n_rays": None}, "n_rays: expected a number with ray_indices"),
        ({"n_rays": 1}, r"ray_indices: expected indices in \[0, 1\), got 0 to 1"),
        ({"ray_indices": None}, "ray_indices: expected with 5 samples of 2 rays, got None"),
        ({"t_starts": t_starts[0], "t_ends": t_ends[0], "ray_indices": None}, r"t_starts: expected shape .*, got \[\]"),
        ({"ray_indices": rays[:4]}, r"ray_indices: expected shape \[5\], got \[4\]"),
        ({"ray_indices": rays.to("meta")}, r"ray_indices: expected a tensor on cpu .* got meta"),
        ({"t_ends": t_ends[:4]}, r"t_ends: expected the shape of t_starts, \[5\], got \[4\]"),
        ({"t_starts": t_starts.long()}, "t_starts: expected a floating-point tensor, got torch.int64"),
        ({"render_bkgd": torch.ones(4)}, r"render_bkgd: expected shape \[3\] or \[2, 3\], got \[4\]"),
        ({"render_bkgd": torch.ones(3, device="meta")}, r"render_bkgd: expected a tensor on cpu .* got meta"),
    ]:
        arguments = {"t_starts": t_starts, "t_ends": t_ends, "ray_indices": rays, "n_rays": 2, "rgb_sigma_fn": good}
        with pytest.raises(ValueError, match=message):
            rendering(**(arguments | options))  # type: ignore[arg-type]


def test_no_channels() -> None:
    """A field of densities alone, and an extra of no width."""
    t, sigmas = torch.rand(2, 5).sort(-1).values, torch.rand(2, 5)

    def densities(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return torch.empty(2, 5, 0), sigmas, {"nothing": torch.empty(2, 5, 0)}

    colors, opacities, _, extras = rendering(t, t + 0.1, rgb_sigma_fn=densities)
    assert colors.shape == extras["nothing"].shape == (2, 0)
    torch.testing.assert_close(opacities, 1 - torch.exp(-(sigmas * 0.1).sum(-1, keepdim=True)))
