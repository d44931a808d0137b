from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops._exact import write_exactly
from lightning_nerf.ops.march import march
from lightning_nerf.ops.pack import pack
from lightning_nerf.types import Rays
from tests.ops.harness import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("expected", [None, 0, 9, 10, 11, 1000])
def test_lists_are_as_long_as_what_they_hold_whatever_was_expected(device: str, expected: int | None) -> None:
    offsets, kept = pack(torch.tensor([3, 0, 7], dtype=torch.int32, device=device))
    lengths: list[int] = []

    def write(size: int) -> tuple[Tensor, Tensor]:
        lengths.append(size)
        places = torch.arange(size, device=device)
        return places.where(places < 10, 0), places.float()

    total, complete, (whole, real) = write_exactly(offsets, kept, write, expected)
    assert (total, complete) == (10, True)
    assert whole.tolist() == real.tolist() == list(range(10))
    guessed = device == "cuda" and expected is not None
    assert lengths == ([expected] if guessed and expected >= 10 else [expected, 10] if guessed else [10])
    assert whole.untyped_storage().nbytes() <= 8 * 4 * 10  # what was expected in vain is let go


@pytest.mark.parametrize("device", DEVICES)
def test_a_ray_that_does_not_fit_is_told(device: str) -> None:
    offsets, kept = pack(torch.tensor([3, 2**31 - 1], dtype=torch.int32, device=device))
    total, complete, _ = write_exactly(offsets, kept, lambda size: (torch.zeros(size, device=device),), 5)
    assert (total, complete) == (3, False)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    total, complete, (nothing,) = write_exactly(*pack(none), lambda size: (torch.zeros(size, device=device),), 5)
    assert (total, complete, len(nothing)) == (0, True, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_march_is_exact_however_the_grid_has_changed(device: str) -> None:
    grid = torch.zeros(1, 8, 8, 8, dtype=torch.bool, device=device)
    rays = torch.linspace(-0.9, 0.9, 5000, device=device)
    origins = torch.stack([rays, rays.flip(0), torch.full_like(rays, -2.0)], -1)
    directions = torch.tensor([0.0, 0.0, 1.0], device=device).expand_as(origins)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], device=device)
    for layers in (1, 8, 8, 2, 0, 4):
        grid.zero_()
        grid[..., :layers] = True
        for n in (5000, 7):
            some = Rays(origins[:n], directions[:n], torch.zeros_like(rays[:n]), torch.full_like(rays[:n], 9.0))
            samples = march(some, grid, box, step_size=2.0**-6)
            assert len(samples.t_starts) == len(samples.ray_indices) == 16 * layers * n
            assert samples.offsets.diff().unique().tolist() == [16 * layers]
            rank = torch.arange(16 * layers, device=device)
            assert torch.equal(samples.t_starts.view(n, -1), (1 + rank * 2.0**-6).expand(n, -1))
