from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.ops.points import sample_points
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import rand


def samples_of(counts: list[int], capacity: int, rays: int) -> PackedSamples:
    n = sum(counts)
    t = torch.zeros(capacity)
    t[:n] = rand(n, seed=0)
    index = torch.zeros(capacity, dtype=torch.int32)
    index[:n] = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    return PackedSamples(t, torch.where(t > 0, t + 0.1, 0.0), index, offsets, torch.ones(rays, dtype=torch.bool))


def test_sample_points() -> None:
    rays = Rays(rand(3, 3, seed=1), rand(3, 3, seed=2), torch.zeros(3), torch.ones(3), rand(3, seed=3))
    positions, directions, times = sample_points(rays, samples_of([2, 0, 1], 5, 3))
    samples = samples_of([2, 0, 1], 5, 3)
    for i, ray in enumerate([0, 0, 2, 0, 0]):
        middle = (samples.t_starts[i] + samples.t_ends[i]) / 2
        torch.testing.assert_close(positions[i], rays.origins[ray] + middle * rays.directions[ray])
        torch.testing.assert_close(directions[i], rays.directions[ray])
        assert times is not None
        assert times[i] == rays.times[ray]  # type: ignore[index]
    torch.testing.assert_close(positions[3:], rays.origins[:1].expand(2, 3))
    assert sample_points(rays._replace(times=None), samples)[2] is None

    none = Rays(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0), torch.zeros(0))
    empty = PackedSamples(torch.zeros(4), torch.zeros(4), torch.zeros(4).int(), torch.zeros(1).int(), torch.ones(0).bool())
    for value, shape in zip(sample_points(none, empty), [(4, 3), (4, 3), (4,)], strict=True):
        assert value is not None
        torch.testing.assert_close(value, torch.zeros(shape))


def test_sample_points_are_differentiable_in_the_rays() -> None:
    samples = samples_of([2, 0, 3], 7, 3)
    samples = samples._replace(t_starts=samples.t_starts.double(), t_ends=samples.t_ends.double())
    origins, directions, times = (rand(*s, seed=i).double().requires_grad_() for i, s in enumerate([(3, 3), (3, 3), (3,)]))

    def function(o: Tensor, d: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return sample_points(Rays(o, d, torch.zeros(3), torch.ones(3), t), samples)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(function, (origins, directions, times))
