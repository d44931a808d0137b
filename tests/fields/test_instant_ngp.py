"""When the field may run in one kernel: only where that computes what its layers would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.fields import InstantNGPField
from lightning_nerf.fields import instant_ngp as module
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, PackedSamples, Rays
from tests.ops.harness import DEVICES, rand
from tests.scenes import fused_field


class OtherDensity(InstantNGPField):
    def density(self, positions: Tensor) -> Tensor:
        return 2 * super().density(positions)


class OtherColors(InstantNGPField):
    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        output = super().forward(positions, directions)
        return output._replace(rgb=1 - output.rgb)


class OtherLinear(nn.Linear):
    pass


def with_layer(i: int, layer: nn.Module) -> InstantNGPField:
    field = fused_field()
    if i == len(field.color_net):
        field.color_net.append(layer)
    else:
        field.color_net[i] = layer
    return field


def test_plain_fields_give_their_weights() -> None:
    weights = fused_field()._kernel_weights()
    assert weights is not None
    assert [tuple(w.shape) for w in weights] == [(64, 32), (16, 64), (64, 32), (64, 64), (3, 64)]


@pytest.mark.parametrize("kind", [OtherDensity, OtherColors])
def test_overridden_methods_are_honoured(kind: type[InstantNGPField]) -> None:
    field = kind(n_levels=8, n_features=4, log2_table_size=12, max_resolution=64)
    assert field.fused
    assert field._kernel_weights() is None


@pytest.mark.parametrize(
    "field",
    [
        with_layer(4, nn.Linear(64, 3)),
        with_layer(4, OtherLinear(64, 3, bias=False)),
        with_layer(1, nn.SiLU()),
        with_layer(0, nn.Linear(32, 32, bias=False)),
        with_layer(5, nn.ReLU()),
    ],
)
def test_replaced_layers_are_honoured(field: InstantNGPField) -> None:
    assert field._kernel_weights() is None


@pytest.mark.gpu
def test_a_gpu_without_kernels_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.instant_ngp, "has_kernels", lambda device: False)
    module._warn_slow.cache_clear()
    field, x = fused_field().cuda(), torch.zeros(3, 3, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16), pytest.warns(RuntimeWarning, match="op by op"):
        field._operands(x.device)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert field._operands(x.device) is None


BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize(("contraction", "outside"), [("none", False), ("l2", True), ("linf", True)])
def test_the_density_outside_of_the_box_is_zero_unless_space_is_contracted(contraction: str, outside: bool) -> None:
    field = fused_field()
    field.bind(SceneBox(BOX, contraction))
    positions = torch.tensor([[0.0, 0.5, -0.9], [1.5, 0.0, 0.0], [-30.0, 9.0, 2.0], [1e6, 0.0, 0.0], [1e38, 1e38, 0.0]])
    density = field.density(positions)
    assert ((density > 0) == torch.tensor([True, *[outside] * 4])).all()
    assert density.isfinite().all()
    assert field(positions, positions.clamp(-1, 1)).rgb.isfinite().all()


def along_two_rays(device: str) -> tuple[Rays, PackedSamples]:
    """From within the box to far outside of it."""
    n = 40
    starts = torch.linspace(0, 6, n, device=device)
    rays = Rays(
        torch.zeros(2, 3, device=device),
        torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.1], [-0.3, 0.4, 1.0]], device=device), dim=-1),
        torch.zeros(2, device=device),
        torch.full((2,), 9.0, device=device),
    )
    owner = torch.arange(2, dtype=torch.int32, device=device).repeat_interleave(n)
    offsets = torch.tensor([0, n, 2 * n], dtype=torch.int32, device=device)
    kept = torch.ones(2, dtype=torch.bool, device=device)
    return rays, PackedSamples(starts.repeat(2), starts.repeat(2) + 6 / n, owner, offsets, kept)


@pytest.mark.gpu
@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
def test_kernels_along_rays_are_left_where_space_is_contracted(contraction: str) -> None:
    """They go to the unit cube by a scale and a shift; the field's other kernels take contracted positions."""
    torch.manual_seed(0)
    field = fused_field().cuda()
    nn.init.normal_(field.position_encoding.table, std=0.3)
    field.bind(SceneBox(BOX.cuda(), contraction))
    rays, samples = along_two_rays("cuda")
    positions, directions, _ = sample_points(rays, samples)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        assert field._operands(positions.device) is torch.bfloat16
        assert (field.frame_kernel(rays) is None) == (contraction != "none")
        output, expected = field.at_samples(rays, samples), field(positions, directions)
        queried = field.query(rays, samples)
        assert (queried.features is None) == (contraction != "none")
    # Positions may differ in their last bits, which tips roundings of bfloat16 operands.
    for a, b in [(output.density, expected.density), (output.rgb, expected.rgb), (queried.values, expected.density)]:
        assert (a - b).norm() <= 2.0**-6 * b.norm()
    far = positions.norm(dim=-1) > 2
    assert (expected.density[far] > 0).all() == (contraction != "none")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_kernels_take_fewer_harmonics_as_zeros(degree: int, device: str) -> None:
    """Colors, and the gradients of the first color layer, are those of the layers one by one."""
    torch.manual_seed(degree)
    field = InstantNGPField(8, 4, log2_table_size=12, base_resolution=8, max_resolution=64, sh_degree=degree).to(device)
    assert field.fused
    nn.init.normal_(field.position_encoding.table, std=0.3)
    field.bind(SceneBox(BOX.to(device)))
    positions, directions = (2 * rand(50, 3, seed=seed).to(device) - 1 for seed in (1, 2))
    results: list[Tensor] = []
    for output in (field._fused(torch.bfloat16, field.unit_positions(positions), directions), field(positions, directions)):
        (grad,) = torch.autograd.grad(output.rgb[:, 0].sum(), field.color_net[0].weight)
        results += [output.rgb.detach(), grad]
    assert results[1].shape == (64, degree**2 + 16)
    for fused, plain in zip(results[:2], results[2:], strict=True):
        assert (fused - plain).norm() <= 2.0**-4 * plain.norm()
    assert not InstantNGPField(8, 4, log2_table_size=8, base_resolution=8, max_resolution=64, sh_degree=5).fused
