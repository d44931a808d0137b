"""Wide perceptrons with skip connections, in one kernel each way where there is one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_nerf.checks import FLOATS, BadArgument, BadType, check_integer, check_tensor, needs_grad
from lightning_nerf.ops.wide_mlp import Input, has_kernel, layer_by_layer, wide_mlp
from lightning_nerf.ops.wide_mlp_layout import Layer, Network, has_input_gradient

MAX_WIDTH, MAX_LAYERS, MAX_ENDS = 4096, 64, 4096  # limits that catch typos before they take all memory


class WideMLP(nn.Module):
    """A perceptron with biases, ReLU behind its hidden layers, and inputs that later layers take once more.

    Under float16 or bfloat16 autocast on a GPU of compute capability 9.0, all layers run in one kernel each way, if the
    width is at most 256 and there are at most 256 inputs and outputs. Anything else runs layer by layer: the same
    parameters and ``state_dict``, results equal up to rounding, differentiable any number of times.

    >>> import torch
    >>> from lightning_nerf import WideMLP
    >>> net = WideMLP(63, 4, width=64, hidden_layers=8, skips=[4])
    >>> net(torch.rand(10, 63)).shape
    torch.Size([10, 4])
    >>> [layer.in_features for layer in net.layers]
    [63, 64, 64, 64, 64, 127, 64, 64, 64]

    Args:
        n_inputs: columns of the inputs.
        n_outputs: columns of the outputs, which have no activation.
        width: of hidden layers; 64, 128 and 256 are the kernels' own, others are padded to these.
        hidden_layers: their number, >= 1.
        skips: hidden layers behind which the inputs are concatenated, 0 being the first; NeRF's is 4.
        fused: False: layer by layer everywhere.

    Weights start Xavier-uniform, biases at 0.

    Source: Mildenhall et al., "NeRF", ECCV 2020, figure 7.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        width: int = 256,
        hidden_layers: int = 8,
        skips: Collection[int] = (4,),
        fused: bool = True,
    ) -> None:
        super().__init__()
        for name, value in [("n_inputs", n_inputs), ("n_outputs", n_outputs)]:
            check_integer(name, value, 1, MAX_ENDS)
        self.network = Network(
            (n_inputs,), (*trunk_layers(width, hidden_layers, skips), Layer(n_outputs, True, is_head=True))
        )
        self.layers = nn.ModuleList(linear_layers(self.network))
        self.fused = fused

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        """Outputs [..., n_outputs] of inputs [..., n_inputs]: float32, or float64 where inputs and weights are.

        ``count`` [1] int32: of inputs [N, n_inputs], rows from there on need no outputs; in one kernel theirs are 0, and
        they cost nothing.
        """
        check_tensor("x", x, (*x.shape[:-1], self.network.inputs[0]), FLOATS)
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.dtype is torch.float64 else rows.float()
        y = run(self.network, [Input(rows)], *weights_and_biases(self.layers), count=count, fused=self.fused)
        return y.view(*x.shape[:-1], y.shape[-1])

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"fused={self.fused}"


def trunk_layers(width: int, hidden_layers: int, skips: Collection[int]) -> tuple[Layer, ...]:
    """Hidden layers on input 0, which those behind a skip take once more."""
    check_integer("width", width, 1, MAX_WIDTH)
    check_integer("hidden_layers", hidden_layers, 1, MAX_LAYERS)
    for i in skips:
        check_integer("skips", i, 0)
        if i >= hidden_layers - 1:
            raise BadArgument(f"skips: expected hidden layers before the last of {hidden_layers}, got {i}")
    return tuple(Layer(width, i > 0, (0,) if i == 0 or i - 1 in skips else ()) for i in range(hidden_layers))


def linear_layers(network: Network) -> Iterable[nn.Linear]:
    """A layer for each of the network's, Xavier-uniform with biases of 0."""
    for outputs, inputs in network.sizes():
        yield linear_layer(inputs, outputs)


def linear_layer(inputs: int, outputs: int) -> nn.Linear:
    """One such layer."""
    linear = nn.Linear(inputs, outputs, dtype=torch.float32)  # whatever torch's default is: kernels know no other
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def weights_and_biases(layers: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Of linear layers, in their order; a parametrization may compute them."""
    weights, biases = [], []
    for layer in layers:
        if not isinstance(layer, nn.Linear) or layer.bias is None:
            raise BadType(f"layers: expected nn.Linear with a bias, got {layer}")
        weights.append(layer.weight)
        biases.append(layer.bias)
    return weights, biases


def run(
    network: Network,
    inputs: Sequence[Input],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    count: Tensor | None = None,
    fused: bool = True,
) -> Tensor:
    """Outputs [N, O]: in one kernel where there is one for these layers, else layer by layer.

    float32, or float64 where inputs and weights are.
    """
    dtype = operands(network, inputs, weights) if fused else None
    if dtype is None:
        y = layer_by_layer(network, [given.dense(count) for given in inputs], weights, biases)
        return y if y.dtype is torch.float64 else y.float()
    return wide_mlp(network, inputs, weights, biases, dtype=dtype, count=count)


def operands(network: Network, inputs: Sequence[Input], weights: Sequence[Tensor]) -> torch.dtype | None:
    """Type of the kernels' operands, autocast's; None: run layer by layer."""
    device = inputs[0].rows.device
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cuda")
    if dtype not in (torch.float16, torch.bfloat16) or not has_kernel(device, network):
        return None
    fits = all(t.dtype is torch.float32 and t.device == device for t in (*weights, *(given.rows for given in inputs)))
    first, *others = (given.rows for given in inputs)
    has_gradients = not needs_grad(*others) and (not needs_grad(first) or has_input_gradient(network))
    return dtype if fits and has_gradients else None
