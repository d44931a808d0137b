from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import library
from lightning_nerf.ops.march import count_reference, lattice_of, march, march_pack_reference, reference, write_reference
from lightning_nerf.ops.pack import pack
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, tensors, to

AABB = torch.tensor([[-1.0, -1.5, -0.7], [1.0, 1.5, 0.9]])
INF, NAN = math.inf, math.nan
# What the kernels do in no time takes the reference for ever: it visits each lattice point.
kernels_only = pytest.mark.skipif(not library.loaded, reason="no compiled library")


def random_rays(n: int, seed: int = 0) -> Rays:
    """From outside and inside of the box, some parallel to one or two axes, of different lengths."""
    origins = rand(n, 3, seed=seed, low=-4, high=4)
    origins[::3] *= 0.25
    directions = rand(n, 3, seed=seed + 1, low=-1) - 0.3 * origins
    directions[::7, 0] = 0.0
    directions[::11, 1:] = 0.0
    return Rays(origins, directions, rand(n, seed=seed + 2), 0.5 + 9 * rand(n, seed=seed + 3))


def random_grid(shape: tuple[int, ...], share: float = 0.3, seed: int = 5) -> Tensor:
    return rand(*shape, seed=seed) < share


def boundary_rays(resolution: int = 8) -> Rays:
    """Along the faces and edges of cells and of the box, in all six directions, and from the box's corners."""
    ticks = torch.linspace(-1, 1, resolution + 1)
    origins, directions = [], []
    for axis, sign, a, b in itertools.product(range(3), (1.0, -1.0), ticks[::2].tolist(), ticks[::3].tolist()):
        origin, direction = [a, b], [0.0, 0.0]
        origin.insert(axis, -2.0 * sign)
        direction.insert(axis, sign)
        origins.append(origin)
        directions.append(direction)
    for corner in itertools.product((-1.0, 1.0), repeat=3):
        origins.append(list(corner))
        directions.append([-c for c in corner])  # the diagonal: through the edges and corners of cells
    n = len(origins)
    return Rays(torch.tensor(origins), torch.tensor(directions), torch.zeros(n), torch.full((n,), INF))


def extreme_rays() -> Rays:
    """Each pair of near and far with each of some origins and directions."""
    points = torch.tensor(
        [[0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [NAN, 0, 0], [0, INF, 0], [1e-45, 0, -1e-45], [3e38, 0, 0], [-1.0, 0.3, 0.3]]
    )
    directions = torch.tensor([[1.0, 0, 0], [0, NAN, 0], [0, 0, INF], [1e-40, 1e-45, 0], [-3e38, 1, 1], [0.3, 0.5, 0.6]])
    limits = torch.tensor(
        [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [NAN, 1.0], [0.0, NAN], [-INF, 1.0], [-2.0, 3.0], [INF, INF]]
    )
    rows = torch.tensor(list(itertools.product(range(len(points)), range(len(directions)), range(len(limits)))))
    near, far = limits[rows[:, 2]].unbind(1)
    return Rays(points[rows[:, 0]], directions[rows[:, 1]], near.contiguous(), far.contiguous())


def arguments(
    rays: Rays,
    occupancy: Tensor,
    aabb: Tensor = AABB,
    step: float = 0.05,
    cone: float = 0.0,
    jitter: Tensor | None = None,
    bins: Tensor | None = None,
) -> tuple[Any, ...]:
    return (rays.origins, rays.directions, rays.near, rays.far, jitter, occupancy, aabb, step, cone, bins)


def far_away(offset: float) -> tuple[Any, ...]:
    """A box at 1e6: positions are multiples of 1/16 there, cells measure 1/4 and steps 1/100."""
    rays = random_rays(20)
    rays = rays._replace(origins=rays.origins + offset, near=rays.near * 0)
    return arguments(rays, random_grid((1, 8, 8, 8)), torch.tensor([[-1.0] * 3, [1.0] * 3]) + offset, step=0.01)


def of_all_lengths(grids: Tensor | None = None, bins: Tensor | None = None) -> tuple[Any, ...]:
    """Steps of 3e-5: most rays end soon, some have more lattice points than the CUDA kernels cut into segments."""
    rays = random_rays(40, seed=20)
    rays = rays._replace(far=rays.near + torch.where(torch.arange(40) % 17 == 5, 2.0, 0.01))
    grids = random_grid((1, 8, 8, 8)) if grids is None else grids
    return arguments(rays, grids, step=3e-5, jitter=rand(40, seed=8), bins=bins)


UNIT = torch.tensor([[-1.0] * 3, [1.0] * 3])
CASES: dict[str, tuple[Any, ...]] = {
    "no rays": arguments(random_rays(0), random_grid((1, 4, 4, 4))),
    "one ray": arguments(random_rays(1, seed=3), random_grid((1, 4, 4, 4), 1.0)),
    "random": arguments(random_rays(100), random_grid((1, 16, 12, 9))),
    "fine steps": arguments(random_rays(60), random_grid((1, 8, 8, 8)), step=0.003),
    "coarse steps": arguments(random_rays(60), random_grid((1, 32, 32, 32)), step=0.4),
    "jitter": arguments(random_rays(60), random_grid((1, 8, 8, 8)), jitter=rand(60, seed=8)),
    "cone": arguments(random_rays(60), random_grid((1, 16, 16, 16)), cone=1 / 32, jitter=rand(60, seed=8)),
    "wide cone": arguments(random_rays(60), random_grid((2, 8, 8, 8)), step=0.01, cone=0.3),
    "levels": arguments(random_rays(80), random_grid((4, 8, 8, 8)), AABB / 4, cone=1 / 64),
    "levels, fine steps": arguments(random_rays(60), random_grid((3, 4, 4, 4)), AABB / 2, step=0.002),
    # The finer box does not end at cell boundaries of the coarser level.
    "levels cut cells": arguments(random_rays(80), random_grid((3, 5, 7, 6)), AABB / 3, step=0.01),
    "one cell a level": arguments(random_rays(50), torch.tensor([True, False, True]).reshape(3, 1, 1, 1), AABB / 4),
    "eight levels": arguments(random_rays(50), random_grid((8, 4, 4, 4), 0.5), AABB / 50, step=0.02),
    "full": arguments(random_rays(60), random_grid((1, 6, 6, 6), 2.0)),
    "nothing occupied": arguments(random_rays(60), random_grid((2, 6, 6, 6), 0.0)),
    "boundaries": arguments(boundary_rays(), random_grid((1, 8, 8, 8), 0.5), UNIT, step=0.0625),
    "boundaries, levels": arguments(boundary_rays(), random_grid((3, 8, 8, 8), 0.5), UNIT / 2, step=0.03),
    "boundaries, near misses": arguments(boundary_rays(), random_grid((1, 8, 8, 8), 0.5), UNIT * (1 + 1e-7), step=0.01),
    "extreme": arguments(extreme_rays(), random_grid((2, 4, 4, 4), 0.5), UNIT / 2),
    "extreme, cone": arguments(extreme_rays(), random_grid((1, 4, 4, 4), 0.5), UNIT, cone=0.1),
    "far away": far_away(1e6),
    "below the spacing of floats": arguments(
        Rays(*(a[:30] for a in random_rays(30)[:2]), torch.full((30,), 4096.0), torch.full((30,), 4096.01))._replace(
            origins=rand(30, 3, seed=1, low=-1) - 4096 * random_rays(30).directions
        ),
        random_grid((1, 4, 4, 4), 0.7),
        UNIT,
        step=2e-5,
    ),
    "of all lengths": of_all_lengths(),
    "more segments than are listed": arguments(random_rays(20), random_grid((1, 8, 8, 8), 0.9), step=0.0003),
    "rays of several groups": arguments(random_rays(700), random_grid((1, 32, 32, 32), 0.02), jitter=rand(700, seed=8)),
    "coarse blocks of several": arguments(random_rays(60), random_grid((1, 9, 70, 300), 0.01), step=0.005),
    "coarse blocks of several, levels": arguments(
        random_rays(60), random_grid((2, 40, 33, 150), 0.01), AABB / 2, step=0.01
    ),
    "most cells": arguments(random_rays(20), random_grid((1, 2, 2**18, 1)), step=0.01),
    "no volume": arguments(random_rays(10), random_grid((1, 4, 4, 4), 2.0), AABB * torch.tensor([1.0, 1.0, 0.0])),
}


def timed_march(*args: Any, **kwargs: Any) -> PackedSamples:
    begin = time.perf_counter()
    samples = march(*args, **kwargs)
    seconds = time.perf_counter() - begin
    assert seconds < 5, f"{seconds:.1f} s for {len(samples.kept)} rays"
    return samples


def check_count(args: Sequence[Any], device: str, opcheck: bool = False) -> tuple[Tensor, Tensor]:
    """The counts, which are the reference's, and the kernel's plan, which is its own business."""
    args = to(device, args)
    counts, plan = torch.ops.lightning_nerf.march_count(*args)
    torch.testing.assert_close(counts, count_reference(*args)[0], rtol=0, atol=0)
    if opcheck:
        # Not what AOTDispatcher compares: parts of a plan hold nothing.
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.lightning_nerf.march_count.default, args, test_utils=utilities)
    return counts, plan


def check_kernels(args: Sequence[Any], device: str, opcheck: bool = False) -> Tensor:
    """The three ops against their references, with room for all samples, for half of them, and for more; the counts."""
    counts, plan = check_count(args, device, opcheck)
    total = int(counts.sum())
    for capacity in {total, total // 2, total + 9}:
        offsets, _ = pack(counts, capacity)
        write = (*args, counts, plan, offsets, capacity)
        check_op("march_write", write_reference, write, device=device, rtol=0, atol=0, opcheck=opcheck and capacity > total)
        pack_it = (*args, capacity)
        check_op("march_pack", march_pack_reference, pack_it, device=device, rtol=0, atol=0, opcheck=opcheck)
    return counts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_exactly_the_reference(device: str, name: str) -> None:
    counts = check_kernels(CASES[name], device, opcheck=name in ("one ray", "jitter"))
    if name in ("no rays", "nothing occupied", "no volume"):
        assert not counts.any()
    else:
        assert counts.any()


@pytest.mark.parametrize("device", DEVICES)
def test_random_scenes_give_exactly_the_reference(device: str) -> None:
    random = torch.Generator().manual_seed(11)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=random))]

    for seed in range(40):
        rays = random_rays(24, seed=1000 + 10 * seed)
        shape = (pick(1, 1, 2, 3, 5), *(pick(1, 2, 3, 4, 8, 13, 16) for _ in range(3)))
        aabb = AABB * pick(0.1, 0.5, 1.0, 3.0) + pick(0.0, 0.37, 100.0)
        rays = rays._replace(origins=rays.origins + pick(0.0, 0.0, 100.0))
        args = arguments(
            rays,
            random_grid(shape, pick(0.1, 0.5, 0.9), seed=seed),
            aabb,
            pick(0.003, 0.05, 0.5),
            pick(0.0, 0.004, 0.2),
            pick(None, rand(24, seed=seed)),
        )
        counts, plan = check_count(args, device)
        offsets, _ = pack(counts)
        write = (*args, counts, plan, offsets, int(offsets[-1]))
        check_op("march_write", write_reference, write, device=device, rtol=0, atol=0, opcheck=False)


def neighborhood(points: Tensor, occupancy: Tensor, aabb: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Are all, and are any, of the cells occupied that points within ``margin`` fall in? In float64, level by level."""
    corners = torch.tensor(list(itertools.product((-margin, margin), repeat=3)), dtype=torch.float64)
    p = points.double()[:, None] + corners  # [N, 8, 3]
    low, high = aabb.double()
    result = torch.zeros(p.shape[:2], dtype=torch.bool)
    for level in reversed(range(len(occupancy))):
        center, half = (low + high) / 2, (high - low) / 2 * 2**level
        v = (p - center + half) / (2 * half)
        inside = ((v >= 0) & (v <= 1)).all(-1)
        resolution = torch.tensor(occupancy.shape[1:])
        cell = torch.minimum((v.clamp(0, 1) * resolution).long(), resolution - 1)
        result = torch.where(inside, occupancy[(level, *cell.unbind(-1))], result)
    return result.all(1), result.any(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["random", "jitter", "cone", "levels", "levels cut cells", "boundaries", "wide cone"])
def test_samples_are_the_lattice_points_in_occupied_cells(device: str, name: str) -> None:
    """Against brute force over the whole lattice, with another lookup; points on a boundary may fall to either side."""
    origins, directions, near, far, jitter, occupancy, aabb, step, cone, _ = CASES[name]
    rays = Rays(origins, directions, near, far.clamp(max=10))
    moved = Rays(*to(device, rays[:4]))
    options = {"step_size": step, "cone_angle": cone, "jitter": None if jitter is None else jitter.to(device)}
    samples = PackedSamples(*to("cpu", march(moved, occupancy.to(device), aabb.to(device), **options)))
    for r in range(len(near)):
        t = [float(near[r]) + step * (0.0 if jitter is None else float(jitter[r]))]
        while t[-1] < float(rays.far[r]):
            t.append(t[-1] + max(step, cone * t[-1]))
        edges = torch.tensor(t, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2
        middles = middles[middles < float(rays.far[r])]
        edges = edges[: len(middles) + 1]
        # Float rounding of the midpoint and of the position, for coordinates up to 40.
        sure, possible = neighborhood(origins[r] + middles[:, None] * directions[r], occupancy, aabb, 2e-5)
        begin, end = samples.offsets[r : r + 2].tolist()
        starts = samples.t_starts[begin:end].double()
        nearest = (starts[:, None] - edges[None]).abs().argmin(1)
        torch.testing.assert_close(starts, edges[nearest], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(samples.t_ends[begin:end].double(), edges[nearest + 1], rtol=1e-6, atol=1e-6)
        assert bool((nearest.diff() > 0).all())
        assert bool(possible[nearest].all()), "a sample in an empty cell"
        found = torch.zeros_like(sure).index_fill(0, nearest, True)
        assert not bool((sure & ~found).any()), "a lattice point in an occupied cell is missing"
    assert torch.equal(samples.ray_indices, torch.repeat_interleave(torch.arange(len(near)), samples.offsets.diff()).int())


@pytest.mark.parametrize("device", DEVICES)
def test_a_full_grid_gives_the_interval_over_the_step(device: str) -> None:
    n, step = 200, 0.01
    rays = Rays(
        torch.zeros(n, 3), torch.nn.functional.normalize(rand(n, 3, seed=1, low=-1)), rand(n, seed=2), 1 + rand(n, seed=3)
    )
    occupancy, aabb = torch.ones(2, 5, 5, 5, dtype=torch.bool, device=device), torch.tensor([[-1.5] * 3, [1.5] * 3])
    samples = march(Rays(*to(device, rays[:4])), occupancy, aabb.to(device), step_size=step)
    count = samples.offsets.diff().cpu()
    assert bool(((count - (rays.far - rays.near) / step).abs() <= 1).all())
    # Samples of a ray are gapless: each starts, in the very bits, where the one before it ends.
    inner = samples.ray_indices[1:] == samples.ray_indices[:-1]
    assert torch.equal(samples.t_starts[1:][inner], samples.t_ends[:-1][inner])
    assert bool((samples.t_ends > samples.t_starts).all())


@pytest.mark.parametrize("device", DEVICES)
def test_capacity_drops_whole_rays(device: str) -> None:
    rays = Rays(*to(device, random_rays(60)[:4]))
    grid, aabb = random_grid((1, 8, 8, 8)).to(device), AABB.to(device)
    exact = march(rays, grid, aabb, step_size=0.03)
    assert bool(exact.kept.all())
    total = int(exact.offsets[-1])
    assert exact.t_starts.shape == (total,)
    for capacity in (0, total // 3, total - 1, total, 2 * total):
        samples = march(rays, grid, aabb, step_size=0.03, capacity=capacity)
        expected = exact.offsets[1:] <= capacity
        assert torch.equal(samples.kept, expected)
        used = int(samples.offsets[-1])
        assert used == int(exact.offsets.diff()[expected].sum())
        for name in ("t_starts", "t_ends", "ray_indices"):
            value = getattr(samples, name)
            assert value.shape == (capacity,)
            assert torch.equal(value[:used], getattr(exact, name)[:used])
            assert not value[used:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name", ["random", "jitter", "levels", "fine steps", "of all lengths", "more segments than are listed"]
)
@pytest.mark.parametrize("limit", [0, 1, 17])
def test_a_limit_keeps_the_first_samples_of_each_ray(device: str, name: str, limit: int) -> None:
    origins, directions, near, far, jitter, occupancy, aabb, step, cone, _ = to(device, CASES[name])
    rays, options = Rays(origins, directions, near, far), {"step_size": step, "cone_angle": cone, "jitter": jitter}
    whole = march(rays, occupancy, aabb, **options)
    counts = whole.offsets.diff()
    assert bool((counts > 17).any())
    rank = torch.arange(len(whole.t_starts), device=device) - whole.offsets[whole.ray_indices.long()]
    first, n = rank < limit, int(counts.clamp(max=limit).sum())
    for of, capacity in ((march, None), (reference, None), (march, n + 3)):
        samples = of(rays, occupancy, aabb, **options, capacity=capacity, limit=limit)
        assert torch.equal(samples.offsets.diff(), counts.clamp(max=limit))
        assert bool(samples.kept.all())
        assert len(samples.t_starts) == (n if capacity is None else n + 3)
        for field in ("t_starts", "t_ends", "ray_indices"):
            assert torch.equal(getattr(samples, field)[:n], getattr(whole, field)[first])
            assert not getattr(samples, field)[n:].any()
    dropped = march(rays, occupancy, aabb, **options, capacity=max(n - 1, 0), limit=limit)
    assert bool(dropped.kept.all()) == (n == 0)


def test_the_same_bits_with_any_number_of_threads() -> None:
    rays, threads = random_rays(500), torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(march(rays, random_grid((2, 16, 16, 16)), AABB, step_size=0.01, cone_angle=0.01))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*map(tensors, results), strict=True):
        assert torch.equal(a, b)


def test_gets_no_gradient() -> None:
    rays = random_rays(20)
    rays = rays._replace(origins=rays.origins.requires_grad_(), directions=rays.directions.requires_grad_())
    samples = march(rays, random_grid((1, 8, 8, 8)), AABB, step_size=0.05)
    assert not any(a.requires_grad for a in tensors(samples))


def test_noncontiguous_rays_are_taken() -> None:
    rays = random_rays(20)
    strided = Rays(*(torch.stack([a, a], -1)[..., 0] for a in rays[:4]))
    grid = random_grid((1, 8, 8, 8))
    transposed = grid.transpose(1, 3).contiguous().transpose(1, 3)
    assert not strided.origins.is_contiguous()
    assert not transposed.is_contiguous()
    results = march(strided, transposed, AABB, step_size=0.05), march(rays, grid, AABB, step_size=0.05)
    for a, b in zip(*map(tensors, results), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_a_grid_may_begin_at_any_address(device: str) -> None:
    rays = Rays(*to(device, random_rays(20)[:4]))
    grid, aabb = random_grid((1, 8, 8, 8)).to(device), AABB.to(device)
    view = torch.cat([grid.new_zeros(1), grid.flatten()])[1:].view(grid.shape)
    assert view.is_contiguous()
    assert view.data_ptr() % 4 == 1
    results = march(rays, view, aabb, step_size=0.05), march(rays, grid, aabb, step_size=0.05)
    for a, b in zip(*map(tensors, results), strict=True):
        assert torch.equal(a, b)


@kernels_only
@pytest.mark.parametrize("shift", [-1, 1])
def test_the_comparison_detects_a_lookup_half_a_step_off(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(lattice_of(torch.zeros(1), None, 1.0, 0.0))
    right = kind.middle
    monkeypatch.setattr(kind, "middle", lambda self, k: right(self, k + 0.5 * shift))
    args = CASES["random"]
    assert_detected(lambda: check_count(args, "cpu"))


def test_bad_arguments_are_named() -> None:
    rays, grid = random_rays(4), random_grid((1, 4, 4, 4))
    bad: list[tuple[Rays, Tensor, Tensor, dict[str, Any], str]] = [
        (rays._replace(near=rays.near[1:]), grid, AABB, {}, r"rays.near: expected shape \[4\], got \[3\]"),
        (rays._replace(origins=rays.origins.double()), grid, AABB, {}, r"rays.origins: expected dtype torch.float32"),
        (rays, grid[0], AABB, {}, r"occupancy: expected shape \[L, X, Y, Z\], got \[4, 4, 4\]"),
        (rays, grid.float(), AABB, {}, r"occupancy: expected dtype torch.bool"),
        (rays, random_grid((9, 1, 1, 1)), AABB, {}, r"occupancy: expected 1 to 8 levels .* got \[9, 1, 1, 1\]"),
        (rays, random_grid((1, 1, 0, 1)), AABB, {}, r"occupancy: expected .* got \[1, 1, 0, 1\]"),
        (
            rays,
            random_grid((1, 2**18 + 1, 1, 1)),
            AABB,
            {},
            r"occupancy: expected .* cells on each axis, got \[1, 262145, 1, 1\]",
        ),
        (rays, grid, AABB.flip(0), {}, r"aabb: expected minimum < maximum"),
        (rays, grid, AABB[None], {}, r"aabb: expected shape \[2, 3\]"),
        (rays, grid, AABB, {"step_size": 0.0}, r"step_size: .* got 0.0"),
        (rays, grid, AABB, {"step_size": NAN}, r"step_size: .* got nan"),
        (rays, grid, AABB, {"cone_angle": -0.1}, r"cone_angle: .* got -0.1"),
        (rays, grid, AABB, {"jitter": torch.zeros(3)}, r"jitter: expected shape \[4\], got \[3\]"),
        (rays, grid, AABB, {"capacity": -1}, r"capacity: .* got -1"),
    ]
    for r, occupancy, aabb, options, message in bad:
        with pytest.raises(ValueError, match=message):
            march(r, occupancy, aabb, **{"step_size": 0.1, **options})
