from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.ops.composite import composite
from lightning_nerf.renderers import Renderer, VolumeRenderer
from lightning_nerf.types import FieldOutput, PackedSamples, Render
from tests.ops.harness import DEVICES, ragged_offsets, rand

COUNTS = [4, 0, 7, 1, 0]
EMPTY = [1, 4]


def make(device: str = "cpu", tail: int = 0) -> tuple[FieldOutput, PackedSamples]:
    n, offsets = sum(COUNTS), ragged_offsets(COUNTS)
    owner = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)).int()
    t = torch.arange(n).float()
    samples = PackedSamples(t, t + 0.5, owner, offsets, torch.ones(len(COUNTS), dtype=torch.bool))
    extras = {"normal": rand(n, 3, seed=2, low=-1), "label": rand(n, 5, seed=3)}
    output = FieldOutput(rand(n, seed=0, high=4), rand(n, 3, seed=1), extras)
    if tail:
        zeros, nans = torch.zeros(tail), torch.full((tail, 5), float("nan"))
        samples = samples._replace(
            t_starts=torch.cat([samples.t_starts, zeros]),
            t_ends=torch.cat([samples.t_ends, zeros]),
            ray_indices=torch.cat([samples.ray_indices, zeros.int()]),
        )
        extras = {name: torch.cat([e, nans[:, : e.shape[1]]]) for name, e in output.extras.items()}
        output = FieldOutput(torch.cat([output.density, nans[:, 0]]), torch.cat([output.rgb, nans[:, :3]]), extras)
    moved = {name: e.to(device) for name, e in output.extras.items()}
    return FieldOutput(output.density.to(device), output.rgb.to(device), moved), PackedSamples(
        *(None if s is None else s.to(device) for s in samples)  # type: ignore[arg-type]
    )


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_colors_and_extras_are_composited_alike(device: str) -> None:
    output, samples = make(device)
    render = VolumeRenderer()(output, samples, return_weights=True)
    assert list(render.extras) == ["normal", "label"]
    for channels, rendered in [(output.rgb, render.rgb), *((output.extras[k], render.extras[k]) for k in render.extras)]:
        truth = composite(output.density, channels, samples.t_starts, samples.t_ends, samples.offsets, return_weights=True)
        # One call or three: the same sums, in another order at most.
        torch.testing.assert_close(rendered, truth.channels, rtol=1e-6, atol=1e-6)
        for name in ("opacity", "depth", "n_samples", "weights"):
            torch.testing.assert_close(getattr(render, name), getattr(truth, name), rtol=1e-6, atol=1e-6)
    without = VolumeRenderer()(output._replace(extras={}), samples)
    assert without.weights is None
    assert without.extras == {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("per_ray", [False, True])
def test_background_shines_through(device: str, per_ray: bool) -> None:
    output, samples = make(device)
    background = (rand(len(COUNTS), 3, seed=7) if per_ray else rand(3, seed=7)).to(device)
    black = VolumeRenderer()(output, samples)
    render = VolumeRenderer()(output, samples, background=background)
    # One rounding more or less, depending on whether the sum is fused.
    expected = black.rgb + (1 - black.opacity)[:, None] * background
    torch.testing.assert_close(render.rgb, expected, rtol=2**-22, atol=0)
    equal(render.rgb[EMPTY], background.expand(len(COUNTS), 3)[EMPTY])  # exactly
    for name in ("opacity", "depth", "n_samples"):
        assert (getattr(render, name)[EMPTY] == 0).all()
        equal(getattr(render, name), getattr(black, name))


@pytest.mark.parametrize("device", DEVICES)
def test_a_poisoned_tail_changes_nothing(device: str) -> None:
    results = []
    for tail in (0, 30):
        output, samples = make(device, tail)
        density, rgb = output.density.requires_grad_(), output.rgb.requires_grad_()
        render = VolumeRenderer()(output, samples, background=torch.ones(3, device=device))
        (render.rgb.square().sum() + render.extras["label"].sum() + render.depth.sum()).backward()
        assert density.grad is not None
        assert rgb.grad is not None
        n = sum(COUNTS)
        assert (density.grad[n:] == 0).all()
        assert (rgb.grad[n:] == 0).all()
        results.append([render.rgb, render.opacity, render.depth, density.grad[:n], rgb.grad[:n]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # on CUDA the order of sums depends on the capacity


def test_the_background_gets_its_gradient() -> None:
    output, samples = make()
    background = torch.zeros(3, requires_grad=True)
    render = VolumeRenderer()(output, samples, background=background)
    render.rgb.sum().backward()
    assert background.grad is not None
    torch.testing.assert_close(background.grad, (1 - render.opacity).sum().expand(3))


def test_early_termination_reaches_the_op() -> None:
    output, samples = make()
    assert VolumeRenderer()(output, samples).n_samples.tolist() == COUNTS
    stopped = VolumeRenderer(0.3)(output, samples)
    expected = composite(output.density, output.rgb, *samples[:2], samples.offsets, early_stop_eps=0.3)
    equal(stopped.n_samples, expected.n_samples)
    assert stopped.n_samples.sum() < sum(COUNTS)
    with pytest.raises(ValueError, match="early_stop_eps: expected a number in"):
        VolumeRenderer(1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_renders_in_float32(dtype: torch.dtype) -> None:
    output, samples = make()
    output = FieldOutput(output.density.to(dtype).requires_grad_(), output.rgb.to(dtype).requires_grad_())
    truth = VolumeRenderer()(FieldOutput(output.density.float(), output.rgb.float()), samples, background=torch.ones(3))
    with torch.autocast("cpu", dtype=dtype):
        render = VolumeRenderer()(output, samples, background=torch.ones(3))
    equal(render.rgb, truth.rgb)
    equal(render.depth, truth.depth)
    render.rgb.sum().backward()
    for leaf in (output.density, output.rgb):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype


def test_no_rays() -> None:
    samples = PackedSamples(
        torch.zeros(0), torch.zeros(0), torch.zeros(0).int(), torch.zeros(1).int(), torch.zeros(0, dtype=torch.bool)
    )
    render = VolumeRenderer()(FieldOutput(torch.zeros(0), torch.zeros(0, 3)), samples, background=torch.ones(3))
    assert [tuple(v.shape) for v in render[:4]] == [(0, 3), (0,), (0,), (0,)]


def test_a_renderer_of_ones_own() -> None:
    class Silhouette(VolumeRenderer):
        def forward(self, output: FieldOutput, samples: PackedSamples, **options: object) -> Render:
            render = super().forward(output, samples)
            return render._replace(rgb=render.opacity[:, None].expand(-1, 3))

    output, samples = make()
    assert isinstance(Silhouette(), Renderer)
    assert (Silhouette()(output, samples).rgb[EMPTY] == 0).all()
    with pytest.raises(TypeError, match="abstract"):
        Renderer()  # type: ignore[abstract]


def test_bad_arguments_are_named() -> None:
    output, samples = make()
    with pytest.raises(ValueError, match=r"rgb: expected shape \[12, 3\], got \[12, 4\]"):
        VolumeRenderer()(output._replace(rgb=torch.zeros(12, 4)), samples)
    with pytest.raises(ValueError, match=r"extras\['depth'\]: expected shape \[12, k\], got \[12\]"):
        VolumeRenderer()(output._replace(extras={"depth": torch.zeros(12)}), samples)
    with pytest.raises(ValueError, match=r"background: expected shape \[5, 3\], got \[4, 3\]"):
        VolumeRenderer()(output, samples, background=torch.zeros(4, 3))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_near_cameras_are_scaled_and_pictures_are_not(device: str) -> None:
    output, samples = make(device, tail=3)
    samples.t_ends[-1] = float("nan")
    values = [output.density, output.rgb, *output.extras.values()]
    for each in values:
        each.requires_grad_()
    plain, scaled = VolumeRenderer(), VolumeRenderer(gradient_distance=5.0)
    results = [renderer(output, samples, background=torch.ones(3, device=device)) for renderer in (plain, scaled)]
    equal(results[0].rgb, results[1].rgb)
    assert scaled.is_plain  # kernels of frames have no gradients
    sums = [r.rgb.sum() + r.depth.sum() + sum(e.sum() for e in r.extras.values()) for r in results]
    n = sum(COUNTS)
    factor = (((samples.t_starts + samples.t_ends) / 2)[:n] / 5).square().clamp(max=1)
    assert 0 < int((factor < 1).sum()) < n
    for before, after in zip(*(torch.autograd.grad(total, values) for total in sums), strict=True):
        torch.testing.assert_close(
            after[:n], before[:n] * (factor if before.ndim == 1 else factor[:, None]), rtol=1e-6, atol=0
        )
        assert not after[n:].any()


def test_a_negative_gradient_distance_is_refused() -> None:
    with pytest.raises(BadArgument, match="gradient_distance: expected"):
        VolumeRenderer(gradient_distance=-1.0)
