from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_nerf.fields.instant_ngp import InstantNGPField
from lightning_nerf.fields.mlp import FusedMLP, mlp
from lightning_nerf.ops.fused_mlp import fused_mlp
from tests.fields.nodes import comes_from
from tests.ops.harness import DEVICES, generator


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1))


runs_in_one_kernel = partial(comes_from, op="fused_mlp")


def test_parameters_are_those_of_a_sequential() -> None:
    net = mlp(32, 3, width=64, hidden_layers=2)
    assert list(net.state_dict()) == ["0.weight", "2.weight", "4.weight"]
    plain = nn.Sequential(
        nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 3, bias=False)
    )
    plain.load_state_dict(net.state_dict())
    x = rows(10, 32)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)
    assert isinstance(net[:3], nn.Sequential)
    torch.testing.assert_close(net[:3](x), plain[:3](x), rtol=0, atol=0)


def test_the_fused_op_is_recognised() -> None:
    weights = [layer.weight for layer in mlp(32, 3) if isinstance(layer, nn.Linear)]
    y = fused_mlp(rows(6, 32), weights, dtype=torch.float16)
    assert runs_in_one_kernel(y)
    assert runs_in_one_kernel(y.reshape(2, 3, 3))
    assert not runs_in_one_kernel(mlp(32, 3)(rows(6, 32)))


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivative_without_autocast(device: str) -> None:
    net, x = mlp(4, 1, width=16).to(device), rows(5, 4).to(device).requires_grad_()
    (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert net[0].weight.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 32), (2, 3, 32), (32,), (0, 32)])
def test_one_kernel_under_autocast(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    net = mlp(32, 3, width=64, hidden_layers=2).cuda()
    x = rows(*shape).cuda()
    with torch.autocast("cuda", dtype=dtype):
        y = net(x)
        net.fused = False
        plain = net(x)
    assert runs_in_one_kernel(y)
    assert not runs_in_one_kernel(plain)
    assert y.dtype == plain.dtype == dtype
    # Rounded at the same places; a sum in another order may tip a rounding, by eps.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, plain, rtol=2 * eps, atol=2 * eps)
    grads = [torch.autograd.grad(o.float().square().sum(), list(net.parameters())) for o in (y, plain)]
    for a, b in zip(*grads, strict=True):
        # The plain layers' weight gradients are rounded to `dtype`, the kernel's are not.
        assert (a - b).norm() <= 4 * eps * b.norm()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "net",
    [
        mlp(32, 3, width=48),
        mlp(32, 3, hidden_layers=5),
        mlp(32, 200),
        mlp(32, 3, hidden_layers=0),
        mlp(32, 3, fused=False),
        FusedMLP(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3, bias=False)),
        FusedMLP(nn.Linear(32, 64, bias=False), nn.SiLU(), nn.Linear(64, 3, bias=False)),
        FusedMLP(nn.Linear(32, 64, bias=False), nn.ReLU()),
        mlp(32, 3).half(),
        FusedMLP(weight_norm(nn.Linear(32, 64, bias=False)), nn.ReLU(), nn.Linear(64, 3, bias=False)),
        FusedMLP(),
    ],
)
def test_other_perceptrons_run_layer_by_layer(net: FusedMLP) -> None:
    net, x = net.cuda(), rows(9, 32).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = net(x)
        assert not runs_in_one_kernel(y)
        torch.testing.assert_close(y, nn.Sequential(*net)(x))


@pytest.mark.gpu
def test_float32_runs_layer_by_layer() -> None:
    net, x = mlp(32, 3).cuda(), rows(9, 32).cuda()
    assert net(x).dtype == torch.float32
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert runs_in_one_kernel(net(x))
        with torch.autocast("cuda", enabled=False):
            assert net(x).dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_a_field_that_is_not_fused_has_second_derivatives_under_autocast(device: str) -> None:
    """In its perceptrons: the density of features that require a gradient."""
    field = InstantNGPField(n_levels=4, log2_table_size=8, max_resolution=32, fused=False).to(device)
    encoded = rows(5, field.position_encoding.n_outputs).to(device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y = field.density_net(encoded)
        assert not field.color_net.fused
    assert not runs_in_one_kernel(y)
    (grad,) = torch.autograd.grad(y.float().sum(), encoded, create_graph=True)
    grad.square().sum().backward()
    assert field.density_net[0].weight.grad is not None
