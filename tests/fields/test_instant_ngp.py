"""When the field may run in one kernel: only where that computes what its layers would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.fields import InstantNGPField
from lightning_nerf.fields import instant_ngp as module
from lightning_nerf.types import FieldOutput
from tests.scenes import fused_field


class OtherDensity(InstantNGPField):
    def density(self, positions: Tensor) -> Tensor:
        return 2 * super().density(positions)


class OtherColours(InstantNGPField):
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


@pytest.mark.parametrize("kind", [OtherDensity, OtherColours])
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
    module._say_slow.cache_clear()
    field, x = fused_field().cuda(), torch.zeros(3, 3, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16), pytest.warns(RuntimeWarning, match="op by op"):
        field._operands(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert field._operands(x) is None
