from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.fields import VanillaField
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import DEVICES, generator

BOX = torch.tensor([[-1.0, -2.0, -1.0], [1.0, 2.0, 3.0]])


def field(contraction: str = "none", **options: Any) -> VanillaField:
    torch.manual_seed(0)
    made = VanillaField(**{"width": 64, "hidden_layers": 5, "skip": 1, "view_width": 64, **options})
    made.bind(SceneBox(BOX, contraction))
    return made


def points(n: int, reach: float = 1.0) -> tuple[Tensor, Tensor]:
    g = generator(0)
    positions = BOX.mean(0) + reach * (torch.rand(n, 3, generator=g) - 0.5) * (BOX[1] - BOX[0])
    return positions, torch.randn(n, 3, generator=g)


def by_hand(made: VanillaField, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The layers of figure 7, one by one, the feature layer among them."""
    x = (positions - BOX.mean(0)) / (BOX[1] - BOX[0]) * 3
    x = made.position_encoding(x)
    hidden = x
    for i, layer in enumerate(made.trunk):
        hidden = torch.relu(layer(hidden))
        if i == 1:
            hidden = torch.cat([hidden, x], -1)
    density = torch.relu(made.density_layer(hidden)[:, 0]) / made.unit_length
    seen = made.direction_encoding(directions / directions.norm(dim=-1, keepdim=True))
    view = torch.relu(made.view_layer(torch.cat([made.feature_layer(hidden), seen], -1)))
    return density, torch.sigmoid(made.color_layer(view))


def test_layers_are_those_of_the_paper() -> None:
    made = field()
    positions, directions = points(50)
    output = made(positions, directions)
    density, rgb = by_hand(made, positions, directions)
    torch.testing.assert_close(output.density, density, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.rgb, rgb, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.density(positions), density, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    made = field(density_activation="softplus")
    output = made(*points(50))
    (output.density.sum() + output.rgb.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_nothing_is_outside_of_the_box_unless_it_is_contracted() -> None:
    positions, directions = points(200, reach=4.0)
    outside = ((positions < BOX[0]) | (positions > BOX[1])).any(-1)
    assert 0 < outside.sum() < 200
    made = field(density_activation="softplus")
    assert (made(positions, directions).density[outside] == 0).all()
    assert (made.density(positions)[~outside] > 0).all()
    assert (field("l2", density_activation="softplus").density(positions) > 0).all()


def test_the_unit_does_not_matter() -> None:
    made, positions = field(), points(50)[0]
    larger = field()
    larger.bind(SceneBox(1024 * BOX))
    assert torch.equal(larger.density(1024 * positions) * 1024, made.density(positions))


def three_samples() -> tuple[Rays, PackedSamples, Tensor]:
    """On three rays, before two unused places; and where they are."""
    rays = Rays(*points(3), near=torch.zeros(3), far=torch.ones(3))
    t = torch.tensor([0.1, 0.2, 0.5, 0.0, 0.0])
    indices = torch.tensor([0, 0, 2, 0, 0], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    samples = PackedSamples(t, t + 0.1, indices, offsets, torch.ones(3, dtype=torch.bool))
    return rays, samples, rays.origins[indices.long()] + (t + 0.05)[:, None] * rays.directions[indices.long()]


def test_samples_are_what_points_are() -> None:
    made = field()
    rays, samples, at = three_samples()
    t, _, indices, offsets, _ = samples
    output, expected = made.at_samples(rays, samples), made(at, rays.directions[indices.long()])
    torch.testing.assert_close(output.density[:3], expected.density[:3])
    torch.testing.assert_close(output.rgb[:3], expected.rgb[:3])
    torch.testing.assert_close(made.query(rays, samples).values[:3], expected.density[:3])
    none = Rays(*points(0), near=torch.zeros(0), far=torch.zeros(0))
    empty = PackedSamples(t[:0], t[:0], indices[:0], offsets[:1], torch.ones(0, dtype=torch.bool))
    assert made.at_samples(none, empty).rgb.shape == (0, 3)


@pytest.mark.parametrize("contraction", ["none", "l2"])
def test_a_field_in_float64_computes_in_it(contraction: str) -> None:
    # A position's last bit in float32 is 2^-23, times 2^9 in the fastest sine.
    near = {"rtol": 1e-4, "atol": 2.0**-13}
    rays, samples, at = three_samples()
    single, double = field(contraction), field(contraction).double()
    directions = rays.directions[samples.ray_indices.long()]
    expected = single(at, directions)
    for output in (double(at, directions), double(at.double(), directions.double()), double.at_samples(rays, samples)):
        assert output.density.dtype is torch.float64
        torch.testing.assert_close(output.density[:3].float(), expected.density[:3], **near)
        torch.testing.assert_close(output.rgb[:3].float(), expected.rgb[:3], **near)
    for values in (double.density(at), double.query(rays, samples).values):
        assert values.dtype is torch.float64
        torch.testing.assert_close(values[:3].float(), expected.density[:3], **near)
    assert torch.equal(double.float().query(rays, samples).values, single.query(rays, samples).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_field_in_half_precision_is_refused_by_its_dtype(dtype: torch.dtype) -> None:
    rays, samples, at = three_samples()
    made = field().to(dtype)
    calls: list[Callable[[], object]] = [
        lambda: made.density(at),
        lambda: made(at, at),
        lambda: made.query(rays, samples),
        lambda: made.at_samples(rays, samples),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"VanillaField: expected parameters of torch\.float32 .*, got {dtype}"):
            call()
    assert torch.equal(made.float().aabb, BOX)
    assert made.density(at).isfinite().all()


def test_noise_is_drawn_in_training_only_and_named_by_its_key() -> None:
    made, (positions, directions) = field(density_noise=1.0, density_activation="softplus"), points(4000)
    made.eval()
    quiet = made(positions, directions).density
    assert torch.equal(quiet, made(positions, directions).density)
    made.train()
    key = made.noise_key.clone()
    first, second = made(positions, directions).density, made(positions, directions).density
    assert not torch.equal(first, second)
    made.noise_key.copy_(key)
    assert torch.equal(first, made(positions, directions).density)

    def raw(density: Tensor) -> Tensor:
        return torch.log(torch.expm1(density * made.unit_length))

    noise = (raw(first) - raw(quiet)).detach()
    noise = noise[noise.isfinite()]
    assert abs(noise.mean()) < 4 / math.sqrt(len(noise))
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * len(noise))


def test_each_field_and_each_process_draws_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (positions, directions) = field(density_noise=1.0, density_activation="softplus"), points(50)
    other = VanillaField(width=64, hidden_layers=5, skip=1, view_width=64, density_noise=1.0)
    assert made.noise_key[0] != other.noise_key[0]
    assert torch.equal(made.noise_key[::2], field(density_noise=1.0).noise_key[::2])  # of one seed
    key = made.noise_key.clone()
    first = made(positions, directions).density
    made.noise_key.copy_(key)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not torch.equal(first, made(positions, directions).density)


def test_a_grid_is_made_of_densities_without_noise() -> None:
    made, positions = field(density_noise=1.0, density_activation="softplus"), points(50)[0]
    in_training = made.density(positions)
    made.eval()
    assert torch.equal(in_training, made.density(positions))


@pytest.mark.gpu
def test_one_kernel_and_layers_agree() -> None:
    made = field(width=256, hidden_layers=8, skip=4, view_width=128).cuda()
    positions, directions = (t.cuda() for t in points(1000))
    outputs, grads = [], []
    for fused in (True, False):
        made.fused = fused
        with torch.autocast("cuda", torch.bfloat16):
            output = made(positions, directions)
        outputs.append(output)
        grads.append(torch.autograd.grad(output.density.sum() + output.rgb.sum(), list(made.parameters())))
    torch.testing.assert_close(outputs[0].rgb, outputs[1].rgb, rtol=0, atol=0.02)
    torch.testing.assert_close(outputs[0].density, outputs[1].density, rtol=0.05, atol=0.02)
    for mine, wanted in zip(*grads, strict=True):
        assert (mine - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_work_ends_at_a_count_where_there_is_one_kernel(device: str) -> None:
    made, wide = field().to(device), field(width=512).to(device)
    rays = Rays(*points(3), near=torch.zeros(3), far=torch.ones(3)).map(lambda t: t.to(device))
    has_kernel = device == "cuda" and torch.cuda.get_device_capability() == (9, 0)
    assert not made.ends_at_count(rays), "no autocast"
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        assert made.ends_at_count(rays) == has_kernel
        assert not wide.ends_at_count(rays), "no kernel is so wide"
        made.fused = False
        assert not made.ends_at_count(rays)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"width": 0}, "width"),
        ({"skip": 4}, "skips"),
        ({"view_width": 0}, "view_width"),
        ({"position_frequencies": 0}, "position_frequencies"),
        ({"direction_frequencies": 17}, "direction_frequencies"),
        ({"density_activation": "elu"}, "density_activation"),
        ({"density_noise": -1.0}, "density_noise"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        field(**options)
