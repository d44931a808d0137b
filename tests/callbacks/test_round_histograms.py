from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf.callbacks import RoundHistograms
from lightning_nerf.callbacks.loggers import log_histogram
from lightning_nerf.callbacks.round_histograms import histograms
from lightning_nerf.types import PackedSamples, Rays


def rays(n: int) -> Rays:
    return Rays(torch.zeros(n, 3), torch.ones(n, 3), near=torch.full((n,), 1.0), far=torch.full((n,), 5.0))


def samples(counts: list[int], t_starts: list[float], size: float = 0.2, tail: int = 0) -> PackedSamples:
    t = torch.tensor([*t_starts, *[0.0] * tail])
    of = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)] + [0] * tail, dtype=torch.int32)
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    return PackedSamples(t, t + size, of, offsets, torch.ones(len(counts), dtype=torch.bool))


def test_samples_and_weights_are_counted_by_distance_where_the_estimator_tells_no_edges() -> None:
    """From near = 1 to far = 5 in four parts of length 1; the tail's entries count nowhere."""
    where = samples([3, 0, 2], [1.1, 1.5, 4.7, 2.2, 4.0], tail=2)
    found = histograms(rays(3), where, torch.tensor([0.5, 0.25, 0.25, 0.1, 0.2, 9.0, 9.0]), None, 4)
    assert found.samples.tolist() == [2, 1, 0, 2]
    torch.testing.assert_close(found.weights, torch.tensor([0.75, 0.1, 0.0, 0.45]).double())
    first = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    second = (math.log(3) / 3 + 2 / 3 * math.log(1.5)) / math.log(2)
    assert found.entropy == pytest.approx((first + second) / 2, rel=1e-6)


def test_edges_count_before_distances() -> None:
    edges = torch.tensor([[0.0, 0.1, 0.9, 1.0], [0.0, 0.5, 0.5, 1.0], [7.0, 7.0, 7.0, 7.0]])  # the last row is unused
    found = histograms(rays(2), samples([3, 3], [1.0] * 6, tail=3), torch.ones(9), edges, 4)
    assert found.samples.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("weights", "entropy"),
    [([0.2, 0.2, 0.2], 1.0), ([0.0, 0.9, 0.0], 0.0), ([0.0, 0.0, 0.0], float("nan")), ([1e-5] * 3, float("nan"))],
)
def test_the_entropy_of_one_ray(weights: list[float], entropy: float) -> None:
    found = histograms(rays(1), samples([3], [1.0, 2.0, 3.0]), torch.tensor(weights), None, 4)
    assert found.entropy == pytest.approx(entropy, abs=1e-7, nan_ok=True)


class Board:
    """TensorBoard's writer, as far as histograms go."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def add_histogram_raw(self, *values: Any) -> None:
        self.taken.append(values)


def test_histograms_go_to_loggers_that_take_them() -> None:
    board = Board()
    loggers = [SimpleNamespace(experiment=board), SimpleNamespace(experiment=object()), SimpleNamespace()]
    log_histogram(SimpleNamespace(loggers=loggers), "key", np.array([1.0, 3.0]), 5)  # type: ignore[arg-type]
    expected = ("key", 0.0, 1.0, 4.0, 0.25 + 3 * 0.75, 0.0625 + 3 * 0.5625, [0.5, 1.0], [1.0, 3.0], 5)
    assert board.taken == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps: expected an integer >= 1, got 0"),
        ({"n_rays": 0}, "n_rays: expected an integer >= 1, got 0"),
        ({"n_bins": 513}, "n_bins: expected an integer from 1 to 512, got 513"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoundHistograms(**arguments)


def test_a_tensor_of_weights_with_gradient_is_read() -> None:
    weights: Tensor = torch.full((3,), 0.3, requires_grad=True)
    found = histograms(rays(1), samples([3], [1.0, 2.0, 3.0]), weights * 1, None, 2)
    assert not found.weights.requires_grad
