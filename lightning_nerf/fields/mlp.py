"""The small perceptron of the Instant-NGP family."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from lightning_nerf.capabilities import has, states
from lightning_nerf.ops.fused_mlp import FLOATS, fused_mlp, has_kernel


class FusedMLP(nn.Sequential):
    """An ``nn.Sequential`` that runs in one kernel where :func:`~lightning_nerf.ops.fused_mlp.fused_mlp` has one for it.

    That is on a GPU of compute capability 8.0 or more, under float16 or bfloat16 autocast, for linear layers without bias
    with ReLU between them, hidden layers of one width of 16, 32, 64 or 128, at most four of them, and up to 128 inputs and
    outputs. Anything else runs layer by layer, as do calls that torch.compile traces. Parameters and ``state_dict`` are the
    same in both cases; results are equal up to rounding. In one kernel there is no second derivative, and hooks of the
    layers are not called: set ``fused`` to False where these are wanted.
    """

    fused = True

    @states("layer_by_layer")
    def forward(self, input: Tensor) -> Tensor:
        """Outputs [..., O] of inputs [..., I]."""
        weights = self._weights_for_kernel(input)
        if weights is None:
            return super().forward(input)
        y = fused_mlp(input.reshape(-1, input.shape[-1]), weights, dtype=torch.get_autocast_dtype("cuda"))
        return y.reshape(*input.shape[:-1], y.shape[-1])

    def plain_weights(self) -> list[Tensor] | None:
        """The layers' weights if these are float32, linear without bias, with ReLU between them; else None."""
        if not has(self.forward, "layer_by_layer"):
            return None
        weights: list[Tensor] = []
        for i, layer in enumerate(self):
            if i % 2 == 1:
                if type(layer) is not nn.ReLU:
                    return None
                continue
            # The exact type: a subclass, such as a parametrized layer, may compute something else.
            if type(layer) is not nn.Linear or layer.bias is not None or layer.weight.dtype is not torch.float32:
                return None
            weights.append(layer.weight)
        return weights if len(self) % 2 == 1 else None

    def _weights_for_kernel(self, x: Tensor) -> list[Tensor] | None:
        if not (self.fused and x.is_cuda and torch.is_autocast_enabled("cuda")) or torch.compiler.is_compiling():
            return None
        if x.dtype not in FLOATS or torch.get_autocast_dtype("cuda") not in (torch.float16, torch.bfloat16):
            return None
        weights = self.plain_weights()
        if not weights:
            return None
        width, n_inputs = weights[0].shape
        if x.shape[-1] != n_inputs or weights[-1].device != x.device:
            return None
        if any(tuple(w.shape) != (width, width) for w in weights[1:-1]) or weights[-1].shape[1] != width:
            return None
        return weights if has_kernel(x.device, n_inputs, width, len(weights) - 1, weights[-1].shape[0]) else None


def mlp(n_inputs: int, n_outputs: int, *, width: int = 64, hidden_layers: int = 1, fused: bool = True) -> FusedMLP:
    """Linear layers without bias and ReLU between them, Xavier-uniform weights, as in Mueller et al. 2022.

    Without bias a layer is one matrix product, which tensor cores and fused kernels like. ``fused=False``: layer by layer
    everywhere, as second derivatives want it; see :class:`FusedMLP`.
    """
    sizes = [n_inputs, *[width] * hidden_layers, n_outputs]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs, bias=False)
        nn.init.xavier_uniform_(linear.weight)
        layers += [linear] if i == len(sizes) - 2 else [linear, nn.ReLU(inplace=True)]
    net = FusedMLP(*layers)
    net.fused = fused
    return net
