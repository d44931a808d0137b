from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.encodings import Frequency, HashGrid, SphericalHarmonics
from lightning_nerf.ops.hash_grid import hash_grid
from lightning_nerf.optim import FusedAdam, HalfMirror
from tests.ops.harness import DEVICES, rand


def test_hash_grid_levels() -> None:
    grid = HashGrid()
    resolution, offset, size = grid.levels.long().unbind(-1)
    assert grid.n_outputs == 32
    assert resolution[0] == 16
    assert resolution[-1] == 2048
    growth = math.exp(math.log(2048 / 16) / 15)
    assert resolution.tolist() == [math.floor(16 * growth**level + 1e-6) for level in range(16)]
    assert torch.equal(offset, size.cumsum(0) - size)
    assert (size % 8 == 0).all()
    dense = (resolution + 1) ** 3 <= 2**19
    assert (size[~dense] == 2**19).all()
    assert ((size - (resolution + 1) ** 3)[dense] < 8).all()
    assert grid.table.shape == (int(size.sum()), 2)


@pytest.mark.parametrize(("base", "largest"), [(16, 1024), (2, 3), (7, 7), (16, 2**20)])
@pytest.mark.parametrize("n_levels", [2, 5, 16])
def test_the_last_level_has_the_largest_resolution(base: int, largest: int, n_levels: int) -> None:
    grid = HashGrid(n_levels=n_levels, base_resolution=base, max_resolution=largest, log2_table_size=8)
    assert grid.levels[0, 0] == base
    assert grid.levels[-1, 0] == largest


def test_the_table_is_small_and_follows_the_seed() -> None:
    tables = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        tables.append(HashGrid(n_levels=4, log2_table_size=12, max_resolution=64).table)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert tables[0].dtype == torch.float32
    assert 0.9e-4 < tables[0].abs().max() <= 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dims", "features"), [(2, 4), (3, 2), (4, 1)])
def test_hash_grid_learns(device: str, dims: int, features: int) -> None:
    torch.manual_seed(0)
    grid = HashGrid(dims, n_levels=4, n_features=features, log2_table_size=10, base_resolution=4, max_resolution=16)
    grid = grid.to(device)
    x = rand(512, dims, seed=1).to(device)
    target = (x * 5).sin().prod(-1)
    optimizer = torch.optim.Adam(grid.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = (grid(x).sum(-1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.05 * losses[0]


def test_the_state_survives() -> None:
    kwargs = {"n_levels": 3, "log2_table_size": 9, "max_resolution": 40}
    a, b = HashGrid(**kwargs), HashGrid(**kwargs)
    b.load_state_dict(a.state_dict())
    assert sorted(a.state_dict()) == ["levels", "table"]
    x = rand(9, 3, seed=2)
    assert torch.equal(a(x), b(x))
    assert b.half().levels.dtype == torch.int32
    assert b(x).dtype == torch.float16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(device: str, dtype: torch.dtype) -> None:
    grid = HashGrid(n_levels=2, log2_table_size=9, max_resolution=40).to(device)
    harmonics = SphericalHarmonics().to(device)
    x = rand(9, 3, seed=2).to(device)
    with torch.autocast(device, dtype):
        features, coefficients = grid(x), harmonics(x)
    assert coefficients.dtype == torch.float32
    if device == "cpu":
        assert features.dtype == torch.float32
        assert torch.equal(features, grid(x))
        assert not has_copy(grid)
    else:
        assert features.dtype == dtype
        # float16's values are 6e-8 apart around 1e-4; bfloat16 rounds the result once more.
        torch.testing.assert_close(features.float(), grid(x), rtol=2.0**-8, atol=2.0**-24)
    features.backward(torch.full_like(features, 2.0**-20))
    assert grid.table.grad is not None
    assert grid.table.grad.dtype == torch.float32
    torch.testing.assert_close(grid.table.grad.sum().item(), 2.0**-20 * features.numel(), rtol=1e-5, atol=0)


def small_grid(seed: int = 0) -> HashGrid:
    torch.manual_seed(seed)
    return HashGrid(n_levels=3, log2_table_size=9, max_resolution=40)


def is_current(grid: HashGrid) -> bool:
    """The working table holds the table's values, and is what an optimizer finds on the parameter."""
    working = grid.working_table()
    mirror = HalfMirror.of(grid.table)
    linked = mirror is not None and mirror.copy is working and mirror.is_current(grid.table)
    return linked and torch.equal(working, grid.table.half())


def has_copy(grid: HashGrid) -> bool:
    mirror = HalfMirror.of(grid.table)
    return mirror is not None and mirror.copy is not None


@pytest.mark.parametrize("device", DEVICES)
def test_the_working_table_follows_the_table(device: str) -> None:
    grid = small_grid().to(device)
    assert not has_copy(grid)
    working = grid.working_table()
    assert working.dtype == torch.float16
    assert not working.requires_grad
    assert is_current(grid)
    optimizer = torch.optim.Adam(grid.parameters(), lr=0.1)
    grid(rand(9, 3, seed=2).to(device)).sum().backward()
    for change in (
        optimizer.step,
        lambda: grid.load_state_dict(small_grid(1).state_dict()),
        grid.reset_parameters,
        lambda: grid.table.detach().copy_(torch.ones_like(grid.table)),
        lambda: nn.init.normal_(grid.table),
    ):
        before = working.clone()
        change()
        assert is_current(grid)
        assert not torch.equal(before, working)
        assert grid.working_table() is working  # in place: CUDA graphs hold the address
    assert HalfMirror.of(grid.table).copy is working  # type: ignore[union-attr]
    assert sorted(grid.state_dict()) == ["levels", "table"]
    assert not [name for name, _ in grid.named_buffers() if name != "levels"]  # nothing for DDP to broadcast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_the_working_table_follows_every_optimizer(device: str, kind: Any, fused: bool) -> None:
    """Fused ones write the table without another version; a forward pass may lie in the step's closure, or before it."""
    if fused and kind is torch.optim.Adagrad and device != "cpu":
        pytest.skip("torch fuses Adagrad on the CPU only")
    grid = small_grid().to(device)
    optimizer = kind(grid.parameters(), lr=0.1, fused=fused)

    def closure() -> Tensor:
        optimizer.zero_grad()
        assert is_current(grid)
        loss = grid(rand(9, 3, seed=2).to(device)).sum()
        loss.backward()
        return loss

    for _ in range(3):
        before = grid.working_table().clone()
        optimizer.step(closure)
        assert is_current(grid)
        assert not torch.equal(before, grid.working_table())


def test_an_optimizer_that_writes_both_saves_the_refresh() -> None:
    grid = small_grid()
    working = grid.working_table()
    with torch.no_grad():
        grid.table.add_(1.0)
    working.fill_(7.0)  # stands for what such an optimizer writes
    mirror = HalfMirror.of(grid.table)
    assert mirror is not None
    mirror.mark_written(grid.table)
    assert (grid.working_table() == 7.0).all()
    optimizer = FusedAdam(grid.parameters(), lr=0.1)
    grid(rand(9, 3, seed=2)).sum().backward()
    optimizer.step()
    assert mirror.is_current(grid.table)
    assert is_current(grid)


def test_the_working_table_survives_moves_and_copies() -> None:
    grid = small_grid()
    working = grid.working_table()
    grid.to("cpu")
    assert is_current(grid)
    assert grid.working_table() is working
    grid._apply(lambda t: t + 1 if t.is_floating_point() else t)  # other values, same version
    assert is_current(grid)

    for clone in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert is_current(clone)
        assert clone.working_table() is not working
        nn.init.normal_(clone.table)
        assert is_current(clone)
        assert is_current(grid)
    stale = small_grid()
    stale.working_table()
    nn.init.normal_(stale.table)
    assert is_current(pickle.loads(pickle.dumps(stale)))

    other = small_grid(5)
    grid.load_state_dict(other.state_dict(), assign=True)
    assert is_current(grid)
    assert torch.equal(grid.table, other.table)

    grid.half()
    assert not has_copy(grid)
    assert torch.equal(grid.working_table(), grid.table)
    assert grid(rand(4, 3, seed=1)).dtype == torch.float16
    grid.float()
    assert is_current(grid)
    grid.to("meta")
    assert not has_copy(grid)
    assert grid.working_table().is_meta


def test_the_working_table_of_a_borrowed_table() -> None:
    grid = small_grid()
    working = grid.working_table().clone()

    class Working(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = grid

        def forward(self) -> Tensor:
            return self.grid.working_table()

    for borrowed in (torch.ones_like(grid.table), nn.Parameter(torch.ones_like(grid.table))):
        assert (torch.func.functional_call(Working(), {"grid.table": borrowed}, ()) == 1).all()
        assert torch.equal(grid.working_table(), working)
        assert is_current(grid)


@pytest.mark.parametrize("device", DEVICES)
def test_the_working_table_of_a_validation_serves_training(device: str) -> None:
    grid = small_grid().to(device)
    with torch.inference_mode():
        working = grid.working_table()
    nn.init.normal_(grid.table)
    assert is_current(grid)
    assert grid.working_table() is working
    with torch.inference_mode():
        nn.init.normal_(grid.table)
        assert is_current(grid)
    x = rand(9, 3, seed=2).to(device)
    hash_grid(x, grid.table, grid.levels, working=working).sum().backward()
    assert grid.table.grad is not None


def test_frequency() -> None:
    x = rand(4, 5, 3, seed=3, low=-1.0)
    out = Frequency(6)(x)
    assert out.shape == (4, 5, 39)
    assert Frequency(6).n_outputs == 39
    torch.testing.assert_close(out[..., :3], x)
    for k in range(6):
        torch.testing.assert_close(out[..., 3 + 3 * k : 6 + 3 * k], (2**k * x).sin())
        torch.testing.assert_close(out[..., 21 + 3 * k : 24 + 3 * k], (2**k * x).cos())
    without = Frequency(2, include_input=False, n_dims=1)
    assert without(torch.zeros(1, 1)).tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert without.n_outputs == 4
    assert not without.state_dict()
    by_the_paper = Frequency(6, scale=math.pi)(x)
    torch.testing.assert_close(
        by_the_paper, Frequency(6)(math.pi * x) * by_the_paper.new_tensor([1 / math.pi] * 3 + [1] * 36)
    )
    assert Frequency(6)(x[:0]).shape == (0, 5, 39)
    for dtype in (torch.float64, torch.float16):
        assert Frequency(6)(x.to(dtype)).dtype is (dtype if dtype is torch.float64 else torch.float32)


def test_spherical_harmonics() -> None:
    harmonics = SphericalHarmonics(3)
    assert harmonics(rand(5, 3, seed=1)).shape == (5, harmonics.n_outputs)


def test_they_say_what_they_are() -> None:
    assert "n_levels=2" in repr(HashGrid(n_levels=2, log2_table_size=8))
    assert repr(SphericalHarmonics(2)) == "SphericalHarmonics(degree=2)"
    assert repr(Frequency(4)) == "Frequency(n_frequencies=4, include_input=True, n_dims=3)"
    assert repr(Frequency(4, scale=2)).endswith("n_dims=3, scale=2.0)")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_dims": 5}, "n_dims: expected an integer from 2 to 4, got 5"),
        ({"n_levels": 0}, "n_levels: expected an integer from 1 to 64, got 0"),
        ({"n_features": 3}, "n_features: expected 1, 2, 4 or 8, got 3"),
        ({"log2_table_size": 30}, "log2_table_size: expected an integer from 3 to 28, got 30"),
        ({"base_resolution": 1}, "base_resolution: expected an integer from 2 to 1048576, got 1"),
        ({"max_resolution": 8}, "max_resolution: expected an integer from 16 to 1048576, got 8"),
        ({"n_levels": 1}, "n_levels=1 has one resolution"),
        ({"log2_table_size": 28}, "a table of less than 2\\*\\*31 rows"),
    ],
)
def test_bad_hash_grids_are_named(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashGrid(**{"max_resolution": 2**20, **kwargs})


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="degree: expected an integer from 1 to 5, got 6"):
        SphericalHarmonics(6)
    with pytest.raises(ValueError, match="n_frequencies: expected an integer from 1 to 64, got 0"):
        Frequency(0)
    with pytest.raises(ValueError, match=r"scale: expected a number in \(0, inf\), got 0"):
        Frequency(2, scale=0)
    with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 3\], got \[2, 4\]"):
        Frequency(2)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"positions: expected shape \[N, 3\], got \[2, 4\]"):
        HashGrid(n_levels=2, log2_table_size=8)(torch.zeros(2, 4))
