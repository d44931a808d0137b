"""Times NeRF's perceptron (8 layers of 256, density, a view branch of 128), forward and backward, for each number of rows.

Beside it the same layers in plain torch and, with --compile, under torch.compile, all under bfloat16 autocast, with all
gradients of weights. On CUDA each is replayed from a graph, and limit_ms is the products' time at the rate of torch's own
largest products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import environment, limits_of, median_seconds
from lightning_nerf.fields.vanilla import VanillaField
from lightning_nerf.fields.wide_mlp import run as run_layers
from lightning_nerf.ops.wide_mlp import Input
from lightning_nerf.scene_box import SceneBox


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", help="log2 of the numbers of rows; default 16 18, on a CPU 12")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls; default 30")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")


def run(options: argparse.Namespace, rest: Sequence[str]) -> Report:
    """The report."""
    device, limits = options.device, limits_of(options.device)
    field = VanillaField()
    field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    field.to(device)
    rows = []
    for log2 in options.rows or ([16, 18] if device == "cuda" else [12]):
        n = 2**log2
        inputs = [torch.rand(n, columns, device=device) * 2 - 1 for columns in field.network.inputs]
        times = {"ms": _milliseconds(lambda x=inputs: _ours(field, x), field, device, options.repeats)}
        times["torch_ms"] = _milliseconds(lambda x=inputs: _plain(field, x), field, device, options.repeats)
        if options.compile:
            compiled = torch.compile(_plain)
            times["compile_ms"] = _milliseconds(lambda x=inputs, f=compiled: f(field, x), field, device, options.repeats)
        products = sum(a * b for a, b in field.network.sizes())
        limit = 1000 * 6 * products * n / limits.flops if limits.flops else float("nan")
        rows.append({"rows": n, **times, "limit_ms": limit})
    return {"environment": environment(device), "perceptron": rows}


def _ours(field: VanillaField, inputs: list[Tensor]) -> Tensor:
    return run_layers(field.network, [Input(x) for x in inputs], *field.layers())


def _plain(field: VanillaField, inputs: list[Tensor]) -> Tensor:
    """The layers as the paper draws them."""
    x, directions = inputs
    hidden = x
    for layer in field.trunk:
        taken = hidden if layer.in_features == hidden.shape[1] else torch.cat([hidden, x], 1)
        hidden = F.relu(layer(taken))
    view = F.relu(field.view_layer(torch.cat([field.feature_layer(hidden), directions], 1)))
    return torch.cat([field.density_layer(hidden), field.color_layer(view)], 1).float()


def _milliseconds(forward: Callable[[], Tensor], field: VanillaField, device: str, repeats: int) -> float:
    parameters = list(field.parameters())

    def both() -> object:
        with torch.autocast(device, torch.bfloat16):
            y = forward()
        return torch.autograd.grad(y, parameters, torch.ones_like(y))

    if device != "cuda":
        return 1000 * median_seconds(both, device, repeats)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # as captures want it
        for _ in range(3):
            both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        both()
    return 1000 * median_seconds(graph.replay, device, repeats)
