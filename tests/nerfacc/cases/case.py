"""One row of the comparison with NerfAcc."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.fuzz.strategies import leaves
from tests.ops.harness import rand

EPS = 2**-24  # half the spacing of float32 below 1: one rounding
LONGEST = 30  # samples of a ray

Run = Callable[[Any, str], list[Tensor]]


class Case(NamedTuple):
    path: str  # of the name, below the package
    run: Run  # of the package and the device: results, gradients
    on_cpu: bool  # does NerfAcc have it there
    form: str = ""
    rtol: float = 8 * LONGEST * EPS  # both round once per term or factor of a ray, a few times over
    atol: float = 8 * LONGEST * EPS
    close: Callable[[list[Tensor], list[Tensor]], None] | None = None  # in place of that, where few may be far apart


def part(package: Any, path: str) -> Any:
    """``part(nerfacc, "volrend.rendering")``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{package.__name__}.{module}") if module else package, name)


def calling(path: str, inputs: dict[str, Any], learned: Sequence[str], through: Callable[..., Any] | None) -> Run:
    """Results of a function, and gradients of ``learned`` for random gradients of all of its results."""

    def run(package: Any, device: str) -> list[Tensor]:
        arguments = {k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        wrt = [arguments[name].requires_grad_() for name in learned]
        torch.manual_seed(0)
        function = part(package, path)
        outputs = leaves(function(**arguments) if through is None else through(function, **arguments))
        smooth = [o for o in outputs if o.requires_grad] if learned else []
        if not smooth:
            return outputs
        cotangents = [rand(*o.shape, seed=50 + i).to(o) for i, o in enumerate(smooth)]
        return [*outputs, *torch.autograd.grad(smooth, wrt, cotangents)]

    return run


def row(
    path: str,
    inputs: dict[str, Any],
    *learned: str,
    on_cpu: bool = False,
    through: Callable[..., Any] | None = None,
    **rest: Any,
) -> Case:
    """``through``: calls the function with the arguments where that takes more than a call."""
    return Case(path, calling(path, inputs, learned, through), on_cpu, **rest)
