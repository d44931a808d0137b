from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import library
from lightning_nerf.ops.frequency import frequency
from lightning_nerf.ops.wide_mlp import Encoding, Input, _check_device, _plan_on, has_kernel, layer_by_layer, wide_mlp
from lightning_nerf.ops.wide_mlp_layout import MAX_LINKS, Layer, Network, fits, has_input_gradient, plan
from lightning_nerf.ops.wide_mlp_pieces import gradient_pieces
from lightning_nerf.ops.wide_mlp_reference import to_blocks, to_rows
from tests.ops.harness import DEVICES, generator

HALVES = [torch.bfloat16, torch.float16]


def head(outputs: int, *inputs: int) -> Layer:
    return Layer(outputs, True, inputs, is_head=True)


# All widths of products, with and without padding; skips; heads in the middle; one and two inputs of one block and more.
NETWORKS = {
    "vanilla": Network(
        (63, 27),
        (
            Layer(256, False, (0,)),
            *[Layer(256, True)] * 4,
            Layer(256, True, (0,)),
            *[Layer(256, True)] * 2,
            head(1),
            Layer(128, True, (1,)),
            head(3),
        ),
    ),
    "smallest": Network((3,), (Layer(64, False, (0,)), head(1))),
    "odd": Network((70, 5), (Layer(100, False, (0, 1)), Layer(150, True, (1,)), head(17), Layer(250, True), head(5, 0))),
    "wide ends": Network((130,), (Layer(128, False, (0,)), Layer(128, True), head(200))),
    "narrow": Network((8,), (Layer(16, False, (0,)), Layer(40, True, (0,)), head(70), Layer(64, True), head(2))),
}


class Case(NamedTuple):
    """A perceptron, and rows for it."""

    network: Network
    inputs: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]

    def given(self) -> list[Input]:
        return [Input(x) for x in self.inputs]

    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]


def integers(network: Network, n: int, device: str, seed: int = 0) -> Case:
    """Small integers, of which every sum on the way is exact in both formats: a comparison to the bit is fair."""
    g = generator(seed)
    inputs = [torch.randint(-2, 3, (n, columns), generator=g).float() for columns in network.inputs]
    weights, hidden = [], 0
    for layer, (rows, columns) in zip(network.layers, network.sizes(), strict=True):
        weight = torch.zeros(rows, columns)
        parts = [hidden] if layer.takes_hidden else []
        first = 0
        for part in [*parts, *(network.inputs[i] for i in layer.takes_inputs)]:  # of each something, and nothing twice
            order = torch.randperm(part, generator=g)[torch.arange(rows) % part]
            weight[torch.arange(rows), first + order] = (torch.rand(rows, generator=g) < 0.75) * 2.0 - 1
            first += part
        weights.append(weight)
        hidden = hidden if layer.is_head else rows
    biases = [torch.randint(-1, 3, (rows,), generator=g).float() for rows, _ in network.sizes()]
    return Case(
        network,
        [x.to(device) for x in inputs],
        [w.to(device).requires_grad_() for w in weights],
        [b.to(device).requires_grad_() for b in biases],
    )


def reals(network: Network, n: int, device: str, seed: int = 0) -> Case:
    g = generator(seed)
    sizes = network.sizes()
    inputs = [(torch.rand(n, columns, generator=g) * 2 - 1).to(device) for columns in network.inputs]
    weights = [((torch.rand(s, generator=g) * 2 - 1) * (4 / s[1]) ** 0.5).to(device).requires_grad_() for s in sizes]
    biases = [(torch.rand(s[0], generator=g) - 0.5).to(device).requires_grad_() for s in sizes]
    return Case(network, inputs, weights, biases)


def both_ways(case: Case, dtype: torch.dtype, grad: Tensor, count: Tensor | None = None) -> tuple[Tensor, Sequence[Tensor]]:
    y = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=dtype, count=count)
    return y, torch.autograd.grad(y, case.parameters(), grad)


def in_float64(case: Case, grad: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    double = Case(case.network, *([t.detach().double() for t in some] for some in case[1:]))
    for t in double.parameters():
        t.requires_grad_()
    y = layer_by_layer(double.network, double.inputs, double.weights, double.biases)
    return y, torch.autograd.grad(y, double.parameters(), grad.double())


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 63, 65, 128, 300])
def test_integers_come_out_to_the_bit(device: str, dtype: torch.dtype, name: str, n: int) -> None:
    case = integers(NETWORKS[name], n, device)
    grad = torch.randint(-2, 3, (n, case.network.n_outputs), generator=generator(1)).float().to(device)
    y, grads = both_ways(case, dtype, grad)
    expected, expected_grads = in_float64(case, grad)
    assert y.abs().max() <= 256  # as bfloat16 holds integers
    assert torch.equal(y.double(), expected)
    for mine, wanted in zip(grads, expected_grads, strict=True):
        assert torch.equal(mine.double(), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NETWORKS)
def test_real_numbers_are_off_by_rounding(device: str, dtype: torch.dtype, name: str) -> None:
    case = reals(NETWORKS[name], 700, device)
    grad = torch.randn(700, case.network.n_outputs, generator=generator(2)).to(device)
    y, grads = both_ways(case, dtype, grad)
    expected, expected_grads = in_float64(case, grad)
    # Each layer rounds its weights, what it takes and, going back, the gradient: relative errors of half a unit each, which
    # add up as independent ones do; those ReLUs whose sign changes add as much again.
    unit = torch.finfo(dtype).eps / 2
    layers = len(case.network.layers)
    assert distance(y, expected) < 4 * unit * (3 * layers) ** 0.5
    for mine, wanted in zip(grads, expected_grads, strict=True):
        assert distance(mine, wanted) < 16 * unit * (3 * layers) ** 0.5 + 4 * unit**0.5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [20_000, 70_000])
def test_many_rows_as_on_the_cpu(dtype: torch.dtype, name: str, n: int) -> None:
    case = reals(NETWORKS[name], n, "cuda")
    cpu = Case(case.network, *([t.detach().cpu() for t in some] for some in case[1:]))
    for t in cpu.parameters():
        t.requires_grad_()
    grad = torch.randn(n, case.network.n_outputs, generator=generator(3))
    y, grads = both_ways(case, dtype, grad.cuda())
    expected, expected_grads = both_ways(cpu, dtype, grad)
    unit = torch.finfo(dtype).eps
    assert distance(y.cpu(), expected) < unit  # sums in another order: few numbers round to their other neighbor
    # A result that rounds to its other neighbor can change the sign in front of a ReLU. Where a share p of signs differs, a
    # sum over rows is off by the square root of p; p is far below one unit.
    for mine, wanted in zip(grads, expected_grads, strict=True):
        assert distance(mine.cpu(), wanted) < 4 * unit + unit**0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "count"), [(300, 0), (300, 1), (300, 128), (300, 200), (300, 900), (300, -4), (0, 0)])
def test_rows_that_do_not_count_are_not_read(device: str, n: int, count: int) -> None:
    case = integers(NETWORKS["odd"], n, device)
    kept = max(0, min(n, count))
    for x in case.inputs:
        x[kept:] = float("nan")
    grad = torch.ones(n, case.network.n_outputs, device=device)
    grad[kept:] = float("nan")
    y, grads = both_ways(case, torch.float16, grad, torch.tensor([count], dtype=torch.int32, device=device))
    few = case._replace(inputs=[x[:kept] for x in case.inputs])
    expected, expected_grads = in_float64(few, grad[:kept])
    assert torch.equal(y[:kept].double(), expected)
    assert (y[kept:] == 0).all()
    for mine, wanted in zip(grads, expected_grads, strict=True):
        assert torch.equal(mine.double(), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoding", [Encoding(10), Encoding(3, include_input=False, scale=3.0)])
def test_inputs_are_encoded_and_found_by_index_on_the_way(device: str, encoding: Encoding) -> None:
    columns = encoding.columns(3), encoding.columns(2)
    network = Network(columns, (Layer(64, False, (0,)), Layer(64, True, (0, 1)), head(4)))
    case = reals(network, 200, device)
    g = generator(5)
    positions = (torch.rand(200, 3, generator=g) * 3 - 1.5).to(device)
    directions = (torch.rand(9, 2, generator=g) * 2 - 1).to(device)
    index = torch.randint(9, (200,), generator=g, dtype=torch.int32).to(device)
    given = [Input(positions, encoding), Input(directions, encoding, index)]
    y = wide_mlp(network, given, case.weights, case.biases, dtype=torch.float16)
    n, include_input, scale = encoding
    dense = [frequency(t, n, include_input=include_input, scale=scale) for t in (positions, directions[index.long()])]
    assert [tuple(x.shape) for x in dense] == [(200, c) for c in columns]
    expected = wide_mlp(network, [Input(x) for x in dense], case.weights, case.biases, dtype=torch.float16)
    # Sines and cosines may differ in the last bit of float32, and so now and then in that of float16.
    assert distance(y, expected) < torch.finfo(torch.float16).eps
    assert all(torch.equal(a.dense(), b) for a, b in zip(given, dense, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_the_same_in_every_run_and_without_gradients(device: str) -> None:
    case = reals(NETWORKS["vanilla"], 1000, device)
    grad = torch.randn(1000, 4, generator=generator(4)).to(device)
    y, grads = both_ways(case, torch.bfloat16, grad)
    again, grads_again = both_ways(case, torch.bfloat16, grad)
    with torch.no_grad():
        plain = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.bfloat16)
    assert torch.equal(y, again)
    assert torch.equal(y, plain)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_training_may_follow_a_validation_in_inference_mode(device: str) -> None:
    case = reals(NETWORKS["smallest"], 10, device)
    for cached in (_plan_on, plan, gradient_pieces):
        cached.cache_clear()
    with torch.inference_mode():
        expected = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.bfloat16)
    y, grads = both_ways(case, torch.bfloat16, torch.ones(10, 1, device=device))
    assert torch.equal(y, expected)
    assert all(bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_row(device: str) -> None:
    case = reals(NETWORKS["vanilla"], 200, device)
    case.inputs[0][77] = float("nan")
    y = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.bfloat16)
    assert y[77].isnan().all()
    assert y.isnan().any(1).sum() == 1


@pytest.mark.parametrize("device", DEVICES)
def test_the_comparison_detects_a_missing_skip(device: str) -> None:
    case = integers(NETWORKS["vanilla"], 100, device)
    spoilt = case._replace(weights=[w.detach().clone() for w in case.weights])
    spoilt.weights[5][:, 256:] = 0
    y = wide_mlp(case.network, case.given(), spoilt.weights, case.biases, dtype=torch.float16)
    expected = layer_by_layer(case.network, case.inputs, case.weights, case.biases)
    assert not torch.equal(y, expected)


def test_blocks_hold_rows_in_another_order() -> None:
    rows = torch.arange(100 * 130.0).view(100, 130)
    blocks = to_blocks(rows, 2)
    assert blocks.shape == (2, 3, 4096)
    assert torch.equal(to_rows(blocks)[:100, :130], rows)
    assert not torch.equal(blocks[0, 0, 64:128], rows[1, :64])  # row 1 is swizzled


# Skips, an input of several blocks, one that a layer takes beside another.
WITH_INPUT_GRADIENT = {
    "vanilla": NETWORKS["vanilla"],
    "smallest": NETWORKS["smallest"],
    "narrow": NETWORKS["narrow"],
    "wide ends": NETWORKS["wide ends"],
    "two inputs": Network((70, 5), (Layer(100, False, (0, 1)), Layer(150, True, (0, 1)), head(17, 1))),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", WITH_INPUT_GRADIENT)
@pytest.mark.parametrize(("n", "count"), [(1, 1), (300, 300), (300, 200), (300, 0), (0, 0)])
def test_the_first_input_gets_its_gradient(device: str, dtype: torch.dtype, name: str, n: int, count: int) -> None:
    case = integers(WITH_INPUT_GRADIENT[name], n, device)
    x = case.inputs[0].requires_grad_()
    grad = torch.randint(-2, 3, (n, case.network.n_outputs), generator=generator(1)).float().to(device)
    grad[count:] = float("nan")
    counter = torch.tensor([count], dtype=torch.int32, device=device)
    y = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=dtype, count=counter)
    grads = torch.autograd.grad(y, [x, *case.parameters()], grad)
    rows = [t.detach()[:count].double() for t in case.inputs]
    rows[0].requires_grad_()
    parameters = [t.detach().double().requires_grad_() for t in case.parameters()]
    half = len(case.weights)
    expected = layer_by_layer(case.network, rows, parameters[:half], parameters[half:])
    expected_x, *others = torch.autograd.grad(expected, [rows[0], *parameters], grad[:count].double())
    assert torch.equal(grads[0][:count].double(), expected_x)
    assert not grads[0][count:].any()
    assert count < 300 or expected_x.any()
    assert all(torch.equal(a.double(), b) for a, b in zip(grads[1:], others, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoding", [Encoding(10), Encoding(3, include_input=False, scale=3.0)])
def test_the_gradient_goes_on_through_the_encoding(device: str, encoding: Encoding) -> None:
    network = Network((encoding.columns(3),), (Layer(64, False, (0,)), Layer(64, True, (0,)), head(4)))
    case = reals(network, 500, device)
    x = (torch.rand(500, 3, generator=generator(5)) * 3 - 1.5).to(device).requires_grad_()
    y = wide_mlp(network, [Input(x, encoding)], case.weights, case.biases, dtype=torch.float16)
    grad = torch.randn(500, 4, generator=generator(6)).to(device)
    (found,) = torch.autograd.grad(y, x, grad)
    exact = x.detach().double().requires_grad_()
    n, include_input, scale = encoding
    dense = frequency(exact, n, include_input=include_input, scale=scale)
    double = [[t.detach().double() for t in some] for some in (case.weights, case.biases)]
    (expected,) = torch.autograd.grad(layer_by_layer(network, [dense], *double), exact, grad.double())
    # Rounded are what two layers take and the gradients behind them; a share of the ReLUs' signs changes by that.
    unit = torch.finfo(torch.float16).eps / 2
    assert distance(found, expected) < 16 * unit * 3 + 4 * unit**0.5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_of_many_rows_as_on_the_cpu(dtype: torch.dtype) -> None:
    case = reals(NETWORKS["vanilla"], 70_000, "cuda")
    grad = torch.randn(70_000, 4, generator=generator(3))
    found = []
    for device in ("cuda", "cpu"):
        x = case.inputs[0].detach().to(device).requires_grad_()
        given = [Input(x), Input(case.inputs[1].to(device))]
        parameters = [[t.detach().to(device) for t in some] for some in (case.weights, case.biases)]
        y = wide_mlp(case.network, given, *parameters, dtype=dtype)
        found.append(torch.autograd.grad(y, x, grad.to(device))[0].cpu())
    unit = torch.finfo(dtype).eps
    assert distance(*found) < 4 * unit + unit**0.5  # as in test_many_rows_as_on_the_cpu


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_without_a_derivative_that_need_gradients_are_refused(device: str) -> None:
    of_a_head, second = reals(NETWORKS["odd"], 10, device), reals(NETWORKS["vanilla"], 10, device)
    of_a_head.inputs[0].requires_grad_()
    second.inputs[1].requires_grad_()
    many_links = reals(deep(22, 4, 8, 12), 10, device)
    many_links.inputs[0].requires_grad_()
    for case in (of_a_head, second, many_links):
        with pytest.raises(NotImplementedError, match="a derivative in its first input alone"):
            wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.float16)


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_are_refused(device: str) -> None:
    case = reals(NETWORKS["smallest"], 10, device)
    y = wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.float16)
    (grad,) = torch.autograd.grad(y.square().sum(), case.weights[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="layer_by_layer"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    case = reals(NETWORKS["narrow"], 40, device)
    parameters = torch.cat([t.detach().flatten() for pair in zip(case.weights, case.biases, strict=True) for t in pair])
    plan = _plan_on(case.network, parameters.device)
    for save in (False, True):
        args = (case.inputs[0], None, None, parameters, None, *plan, save, torch.float16, 0, True, 1.0, 0, True, 1.0)
        torch.library.opcheck(torch.ops.lightning_nerf.wide_mlp, args, test_utils=("test_schema", "test_faketensor"))


BAD = {
    "inputs": lambda c: c._replace(inputs=[]),
    r"inputs\[0\].rows": lambda c: c._replace(inputs=[c.inputs[0][:, :2]]),
    r"weights\[1\]": lambda c: c._replace(weights=[c.weights[0], c.weights[1].double()]),
    r"biases\[0\]": lambda c: c._replace(biases=[c.biases[0][:3], c.biases[1]]),
    "network": lambda c: c._replace(network=Network((3,), (Layer(300, False, (0,)), head(1)))),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    case = BAD[name](integers(NETWORKS["smallest"], 5, "cpu"))
    with pytest.raises(ValueError, match=name):
        wide_mlp(case.network, case.given(), case.weights, case.biases, dtype=torch.float16)


def deep(hidden_layers: int, *skips: int) -> Network:
    """Hidden layers of 64, of which those behind ``skips`` take the inputs once more."""
    taken = [Layer(64, i > 0, (0,) if i == 0 or i - 1 in skips else ()) for i in range(hidden_layers)]
    return Network((3,), (*taken, head(1)))


def test_no_kernel_where_there_is_none() -> None:
    assert not has_kernel(torch.device("cpu"), NETWORKS["vanilla"])
    assert all(fits(network) for network in NETWORKS.values())
    assert not fits(Network((300,), (Layer(64, False, (0,)), head(1))))
    assert not fits(Network((3,), (Layer(512, False, (0,)), head(1))))
    assert not fits(Network((3,), (Layer(64, False, (0,)), head(1), head(0)))), "a head without outputs"
    assert not fits(Network((3,), (Layer(64, True), head(1)))), "a layer that takes nothing"
    assert not fits(Network((3,), (Layer(64, False, (0,)), Layer(64, False, (0,)), head(1)))), "taken by no layer"
    assert not fits(Network((3,), (Layer(64, False, (0,)), head(1), Layer(64, True)))), "taken by no layer"
    assert not fits(deep(24)), "25 layers"
    for hidden, skips, links in [(22, (4, 8, 12), 26), (23, (4,), 25), (23, (), 24), (21, (4, 8), 24)]:
        network = deep(hidden, *skips)
        assert fits(network)
        assert len(plan(network, input_gradient=False).backward_links) <= MAX_LINKS
        assert len(plan(network, input_gradient=True).backward_links) == links
        assert has_input_gradient(network) == (links <= MAX_LINKS), "a backward chain with more links than the kernels hold"


def test_another_gpu_than_hopper_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "has_kernel", lambda name, key: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device == 98 else (9, 0))
    _check_device(torch.device("cuda", 99))
    with pytest.raises(ValueError, match=r"inputs: expected a GPU of compute capability 9\.0, got cuda:98"):
        _check_device(torch.device("cuda", 98))


@pytest.mark.parametrize("device", DEVICES)
def test_row_indices_may_be_a_view(device: str) -> None:
    network = Network((4, 4), (Layer(64, False, (0, 1)), head(2)))
    case = integers(network, 10, device)
    index = torch.arange(10, dtype=torch.int32, device=device).repeat_interleave(2)[::2]
    assert not index.is_contiguous()
    y = [
        wide_mlp(
            network,
            [Input(case.inputs[0]), Input(case.inputs[1], row_indices=index)],
            case.weights,
            case.biases,
            dtype=torch.float16,
        )
        for index in (index, index.contiguous())
    ]
    assert torch.equal(*y)


def test_more_frequencies_than_the_kernels_can_tell_apart_are_refused() -> None:
    network = Network((2 * 17,), (Layer(64, False, (0,)), head(1)))
    case = integers(network, 5, "cpu")
    given = [Input(torch.rand(5, 1), Encoding(17, include_input=False))]
    with pytest.raises(ValueError, match=r"inputs\[0\].encoding.n_frequencies: expected an integer from 0 to 16, got 17"):
        wide_mlp(network, given, case.weights, case.biases, dtype=torch.float16)
