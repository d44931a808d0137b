"""``fill="last_sample"``: the light that is left at the end of a ray takes its last sample's color."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_nerf import SyntheticUnboundedScene
from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import Uniform
from lightning_nerf.modules import NeRFModule
from lightning_nerf.renderers import FrameRenderer, VolumeRenderer
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, Rays
from tests.executors.fits import PlainField
from tests.ops.harness import DEVICES
from tests.renderers.test_volume import COUNTS, EMPTY, make
from tests.scenes import tiny_scene, trainer

RED, BLUE = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])


def check_fill(place: int, device: str, tail: int) -> None:
    """Against each ray by itself, composited on the color of its sample at ``place``."""
    output, samples = make(device, tail)
    render = VolumeRenderer(fill="last_sample")(output, samples, background=RED.to(device), return_weights=True)
    plain = VolumeRenderer()(output, samples, return_weights=True)
    ends = torch.tensor(COUNTS).cumsum(0).tolist()
    for ray, (count, end) in enumerate(zip(COUNTS, ends, strict=True)):
        behind = output.rgb[end + place] if count else RED.to(device)
        expected = plain.rgb[ray] + (1 - plain.opacity[ray]) * behind
        torch.testing.assert_close(render.rgb[ray], expected, rtol=1e-6, atol=1e-6)
    for name in ("opacity", "depth", "n_samples", "weights"):
        assert torch.equal(getattr(render, name), getattr(plain, name))
    for name, extra in plain.extras.items():
        torch.testing.assert_close(render.extras[name], extra, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tail", [0, 3])
def test_what_is_left_takes_the_last_samples_color(tail: int, device: str) -> None:
    check_fill(-1, device, tail)
    with pytest.raises(AssertionError):
        check_fill(-2, device, tail)


@pytest.mark.parametrize("device", DEVICES)
def test_rays_without_samples_return_the_background_exactly(device: str) -> None:
    output, samples = make(device)
    renderer = VolumeRenderer(fill="last_sample")
    colors = torch.rand(len(COUNTS), 3, device=device)
    assert torch.equal(renderer(output, samples, background=colors).rgb[EMPTY], colors[EMPTY])
    assert not renderer(output, samples).rgb[EMPTY].any()
    none = samples._replace(
        t_starts=samples.t_starts[:0], t_ends=samples.t_ends[:0], ray_indices=samples.ray_indices[:0],
        offsets=torch.zeros_like(samples.offsets),
    )  # fmt: skip
    nothing = FieldOutput(output.density[:0], output.rgb[:0])
    assert torch.equal(renderer(nothing, none, background=colors).rgb, colors)


@pytest.mark.parametrize("tail", [0, 3])
def test_the_last_sample_gets_the_gradient_of_what_it_fills(tail: int) -> None:
    output, samples = make(tail=tail)
    rgb, density = output.rgb.requires_grad_(), output.density.requires_grad_()
    render = VolumeRenderer(fill="last_sample")(FieldOutput(density, rgb), samples, return_weights=True)
    assert render.weights is not None
    in_rgb, in_density = torch.autograd.grad(render.rgb.sum(), (rgb, density))
    expected = render.weights.detach()[:, None].repeat(1, 3)
    for ray, end in enumerate(torch.tensor(COUNTS).cumsum(0).tolist()):
        if COUNTS[ray]:
            expected[end - 1] += 1 - render.opacity[ray].detach()
    torch.testing.assert_close(in_rgb, expected, rtol=1e-5, atol=1e-6)
    n = sum(COUNTS)
    # A ray of one sample shows its color whatever its density is.
    assert float(in_density[n - 1]) == pytest.approx(0, abs=1e-6)
    assert not in_rgb[n:].any()
    assert not in_density[n:].any()


def test_no_kernel_renders_it_and_its_name_is_checked() -> None:
    assert not VolumeRenderer(fill="last_sample").is_plain
    assert VolumeRenderer(fill="background").is_plain
    assert "fill='last_sample'" in repr(VolumeRenderer(fill="last_sample"))
    with pytest.raises(BadArgument, match="fill: expected one of background, last_sample, got 'last'"):
        VolumeRenderer(fill="last")


def test_frames_are_filled_alike_however_they_are_cut() -> None:
    torch.manual_seed(0)
    field, estimator = PlainField(), Uniform(6, clip_to_box=False)
    field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    rays = Rays(torch.rand(50, 3), torch.rand(50, 3) - 0.5, torch.zeros(50), torch.full((50,), 0.1))
    rays = rays._replace(far=rays.far * (torch.arange(50) % 5 > 0))
    renders = [
        FrameRenderer(field, estimator, VolumeRenderer(fill="last_sample"), max_samples=most).rays(rays, color)
        for most, color in [(2**21, RED), (13, RED), (2**21, BLUE)]
    ]
    assert float(renders[0].opacity.max()) < 0.9
    torch.testing.assert_close(renders[0].rgb, renders[1].rgb)
    assert torch.equal(renders[0].rgb[rays.far > 0], renders[2].rgb[rays.far > 0])
    assert torch.equal(renders[2].rgb[rays.far == 0], BLUE.expand(10, 3))


@pytest.mark.parametrize("opaque", [True, False])
def test_training_and_evaluation_fill_alike(opaque: bool, tmp_path: Path, scene_cache: Path) -> None:
    if opaque:
        data = SyntheticUnboundedScene(resolution=24, n_train=6, n_test=1, n_val=0, cache_dir=str(scene_cache))
    else:
        data = tiny_scene(scene_cache)
    estimator = Uniform(8, clip_to_box=False)
    options = {"samples_per_step": 512, "max_rays": 64, "initial_rays": 64, "seed": 1}
    module = NeRFModule(PlainField(), estimator, VolumeRenderer(fill="last_sample"), **options)  # type: ignore[arg-type]
    trainer(tmp_path, max_steps=2).fit(module, datamodule=data)
    batch = module.draw()
    placement = estimator.place(batch.rays)
    trained = module.renderer(module.field.at_samples(batch.rays, placement.samples), placement.samples, background=RED)
    shown = module.render(batch.rays, BLUE)
    torch.testing.assert_close(shown.rgb, trained.rgb)
