from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_nerf.fields import WideMLP
from tests.fields.nodes import comes_from
from tests.ops.harness import generator


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1))


def by_hand(net: WideMLP, x: Tensor, skips: tuple[int, ...]) -> Tensor:
    hidden = x
    for i, layer in enumerate(list(net.layers)[:-1]):
        hidden = torch.relu(layer(hidden))
        if i in skips:
            hidden = torch.cat([hidden, x], -1)
    return net.layers[-1](hidden)


runs_in_one_kernel = partial(comes_from, op="wide_mlp")


@pytest.mark.parametrize(
    ("width", "hidden_layers", "skips"), [(64, 1, ()), (512, 2, (0,)), (100, 5, (1, 3)), (256, 12, (4, 8))]
)
def test_layers_are_those_of_the_paper(width: int, hidden_layers: int, skips: tuple[int, ...]) -> None:
    net = WideMLP(63, 4, width=width, hidden_layers=hidden_layers, skips=skips)
    x = rows(7, 63)
    torch.testing.assert_close(net(x), by_hand(net, x, skips), rtol=1e-5, atol=1e-5)


def test_any_leading_shape_and_no_rows() -> None:
    net = WideMLP(5, 2, width=64, hidden_layers=2, skips=())
    assert net(rows(3, 4, 5)).shape == (3, 4, 2)
    assert net(rows(0, 5)).shape == (0, 2)


def test_second_derivatives_layer_by_layer() -> None:
    net = WideMLP(3, 1, width=16, hidden_layers=2, skips=(0,)).double()
    x = rows(6, 3).double().requires_grad_()
    seconds = []
    for y in (net(x), by_hand(net, x, (0,))):
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), net.layers[0].weight)[0])
    assert seconds[0].abs().sum() > 0
    torch.testing.assert_close(*seconds)


def test_parametrized_weights_are_used() -> None:
    net = WideMLP(3, 1, width=64, hidden_layers=2, skips=())
    weight_norm(net.layers[1])
    with torch.no_grad():
        net.layers[1].parametrizations.weight.original0.mul_(2)
    x = rows(6, 3)
    torch.testing.assert_close(net(x), by_hand(net, x, ()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_kernel_and_layers_agree(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = WideMLP(63, 4).cuda()
    x = rows(1000, 63).cuda()
    with torch.autocast("cuda", dtype):
        fused = net(x)
        net.fused = False
        plain = net(x)
    assert runs_in_one_kernel(fused)
    assert not runs_in_one_kernel(plain)
    assert fused.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=0, atol=4 * torch.finfo(dtype).eps * float(plain.detach().abs().max()))


@pytest.mark.gpu
def test_inputs_get_gradients_from_the_kernel() -> None:
    torch.manual_seed(0)
    net, x = WideMLP(63, 4).cuda(), rows(1000, 63).cuda().requires_grad_()
    grads = []
    for fused in (True, False):
        net.fused = fused
        with torch.autocast("cuda", torch.bfloat16):
            y = net(x)
        assert runs_in_one_kernel(y) == fused
        grads.append(torch.autograd.grad(y, x, torch.ones_like(y))[0])
    distance = (grads[0] - grads[1]).norm() / grads[1].norm()
    unit = torch.finfo(torch.bfloat16).eps / 2
    assert (
        distance < 16 * unit * 27**0.5 + 4 * unit**0.5
    )  # nine layers round three things each, and ReLUs change their signs


@pytest.mark.gpu
def test_what_the_kernels_do_not_know_runs_layer_by_layer() -> None:
    x = rows(10, 63).cuda()
    cases = {
        "wider": (WideMLP(63, 4, width=512), x),
        "many inputs": (WideMLP(300, 4), rows(10, 300).cuda()),
    }
    for name, (net, given) in cases.items():
        with torch.autocast("cuda", torch.bfloat16):
            assert not runs_in_one_kernel(net.cuda()(given)), name
    assert not runs_in_one_kernel(WideMLP(63, 4).cuda()(x)), "no autocast"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_inputs": 0}, "n_inputs"),
        ({"n_outputs": 1.5}, "n_outputs"),
        ({"width": 0}, "width"),
        ({"hidden_layers": 0}, "hidden_layers"),
        ({"hidden_layers": 4}, "skips"),
        ({"skips": (-1,)}, "skips"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, int], name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        WideMLP(**{"n_inputs": 3, "n_outputs": 1, **options})  # type: ignore[arg-type]


def test_bad_inputs_and_layers_are_named() -> None:
    net = WideMLP(3, 1, width=64, hidden_layers=2, skips=())
    with pytest.raises(ValueError, match=r"x: expected .*3"):
        net(rows(4, 2))
    net.layers[1] = nn.Linear(64, 64, bias=False)
    with pytest.raises(TypeError, match=r"layers: expected nn\.Linear with a bias"):
        net(rows(4, 3))
