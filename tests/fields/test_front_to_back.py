from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.fields.front_to_back import front_to_back
from lightning_nerf.ops.visibility import prune_from
from lightning_nerf.types import PackedSamples
from tests.ops.harness import DEVICES, ragged_offsets, rand

COUNTS = [5, 0, 1, 16, 40, 33, 2, 100, 0]


def samples_on(device: str) -> tuple[PackedSamples, Tensor]:
    offsets = ragged_offsets(COUNTS)
    ray = torch.repeat_interleave(torch.arange(len(COUNTS), dtype=torch.int32), torch.tensor(COUNTS))
    t = (torch.arange(len(ray)) - offsets[ray.long()]) * 0.1
    kept = torch.ones(len(COUNTS), dtype=torch.bool)
    samples = PackedSamples(*(v.to(device) for v in (t, t + 0.1, ray, offsets, kept)))
    return samples, (100 * rand(len(ray), seed=1) ** 4).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ends", [(8, 20), (1, 2, 3), (200,)])
def test_what_is_seen_is_the_same_and_what_is_hidden_is_not_asked_for(device: str, ends: tuple[int, ...]) -> None:
    samples, truth = samples_on(device)
    asked: list[Tensor] = []

    def densities_of(some: PackedSamples) -> Tensor:
        n = int(some.offsets[-1])
        index = (samples.offsets[some.ray_indices.long()] + (some.t_starts / 0.1).round()).long()
        asked.append(index[:n])
        values = truth[index]
        values[n:] = float("nan")  # behind the end anything may come
        return values

    found = front_to_back(samples, densities_of, 0.05, ends)
    expected = prune_from(truth, samples, early_stop_eps=0.05, alpha_thre=0.01)
    mine = prune_from(found, samples, early_stop_eps=0.05, alpha_thre=0.01)
    for a, b in zip((*mine[0], mine[1]), (*expected[0], expected[1]), strict=True):
        assert torch.equal(a, b)
    index = torch.cat(asked)
    assert len(index.unique()) == len(index)
    assert len(asked) == len(ends) + 1
    assert (len(index) < len(truth)) == (ends[0] < max(COUNTS))
    rest = torch.ones_like(truth, dtype=torch.bool)
    rest[index] = False
    assert (found[rest] == 0).all()


def test_gradients_reach_what_was_asked_for() -> None:
    samples, truth = samples_on("cpu")
    scale = torch.ones((), requires_grad=True)
    found = front_to_back(samples, lambda some: scale * torch.ones_like(some.t_starts), 1e-4, (8,))
    (grad,) = torch.autograd.grad(found.sum(), scale)
    assert grad == len(truth)


def test_no_samples() -> None:
    nothing = torch.zeros(0)
    empty = PackedSamples(
        nothing, nothing, nothing.int(), torch.zeros(3, dtype=torch.int32), torch.ones(2, dtype=torch.bool)
    )
    assert front_to_back(empty, lambda some: some.t_starts, 1e-4).shape == (0,)
