"""The small perceptron of the Instant-NGP family."""

from __future__ import annotations

import itertools

from torch import nn


def mlp(n_inputs: int, n_outputs: int, *, width: int = 64, hidden_layers: int = 1) -> nn.Sequential:
    """Linear layers without bias and ReLU between them, Xavier-uniform weights, as in Mueller et al. 2022.

    Without bias a layer is one matrix product, which tensor cores and fused kernels like.
    """
    sizes = [n_inputs, *[width] * hidden_layers, n_outputs]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs, bias=False)
        nn.init.xavier_uniform_(linear.weight)
        layers += [linear] if i == len(sizes) - 2 else [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
