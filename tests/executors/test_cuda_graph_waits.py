"""Fields that no graph can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.executors import replay
from tests.executors.fits import PlainField, assert_equal, fit, plain_module


class Waits(PlainField):
    """A third party's field."""

    def _evaluate(self, positions: Tensor) -> Tensor:
        out = super()._evaluate(positions)
        if out.is_cuda:
            assert out.sum().item() < 1e9
        else:
            replay.synchronize()
        return out


class BackwardWaits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if grad.is_cuda:
            assert grad.sum().item() < 1e9
        else:
            replay.synchronize()
        return grad.clone()


class WaitsBehind(PlainField):
    """A third party's field whose backward pass waits."""

    def _evaluate(self, positions: Tensor) -> Tensor:
        return BackwardWaits.apply(super()._evaluate(positions))


@pytest.mark.parametrize(("kind", "where"), [(Waits, "forward"), (WaitsBehind, "backward")])
def test_a_field_that_waits_trains_eagerly_and_is_named(
    tmp_path: Path, scene_cache: Path, accelerator: str, kind: type[PlainField], where: str
) -> None:
    eager, _, _ = fit(tmp_path, scene_cache, accelerator, "auto", plain_module(kind))
    with pytest.warns(
        UserWarning, match=f"runs eagerly, because the {where} pass waits.*(test_cuda_graph_waits|replay).py"
    ) as said:
        graph, seen, _ = fit(tmp_path, scene_cache, accelerator, module=plain_module(kind))
    assert len([w for w in said if "CUDA graphs" in str(w.message)]) == 1
    assert_equal(eager, graph)
    assert not any(seen.replayed)
    assert seen.captures == 0
