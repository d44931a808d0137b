"""Lists that do not fit in memory: refused before the memory is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_nerf import HashGrid, OccupancyGrid, Rays, nerfacc
from lightning_nerf.checks import BadArgument
from lightning_nerf.ops import _exact, library, memory
from lightning_nerf.ops.march import march
from lightning_nerf.ops.pack import pack
from lightning_nerf.ops.random import make_key
from lightning_nerf.ops.visibility import prune
from tests.scenes import tiny_scene

GIGABYTE = 2**30


def rays(n: int) -> Rays:
    origins, directions = torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]])
    return Rays(origins.repeat(n, 1), directions.repeat(n, 1), torch.zeros(n), torch.full((n,), 9.0))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with a gigabyte, and the lengths of the lists that are asked for on it."""
    monkeypatch.setattr(memory, "_system_memory", lambda: GIGABYTE)
    lengths: list[int] = []
    write_exactly = _exact.write_exactly

    def noted(offsets: torch.Tensor, kept: torch.Tensor, write: object, *rest: object) -> object:
        def refused(size: int) -> tuple[torch.Tensor, ...]:
            lengths.append(size)
            raise MemoryError(size)

        return write_exactly(offsets, kept, refused, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("lightning_nerf.ops.march.write_exactly", noted)
    return lengths


@pytest.mark.parametrize(
    ("step_size", "n", "words"),
    [
        (
            1e-9,
            1,
            "step_size: 2000000208 samples need 74.5 GB, but cpu has 1 GB left, enough for 26843545; expected a larger",
        ),
        (2e-8, 10, "step_size: [0-9]+ samples need 37.3 GB, but cpu has 1 GB left, enough for 26843545; expected a larger"),
        (1e-9, 3, r"step_size: 2 of 3 rays do not fit in 2\*\*31 - 1 samples .* expected a larger one than 1e-09"),
        (1e-30, 3, r"step_size: 3 of 3 rays do not fit in 2\*\*31 - 1 samples"),
    ],
)
def test_a_step_that_is_too_small_is_refused_before_memory_is_asked_for(
    step_size: float, n: int, words: str, asked: list[int]
) -> None:
    grid = OccupancyGrid(resolution=8, step_size=step_size).bind([-1, -1, -1, 1, 1, 1])
    with pytest.raises(BadArgument, match=words):
        grid.place(rays(n))
    assert asked == []


def test_a_capacity_that_does_not_fit_is_refused(asked: list[int]) -> None:
    occupancy, box = torch.ones(1, 2, 2, 2, dtype=torch.bool), torch.tensor([[-1.0] * 3, [1.0] * 3])
    words = "capacity: 2147483647 samples need 24 GB, but cpu has 1 GB left, enough for 89478485; expected a smaller one"
    with pytest.raises(BadArgument, match=words):
        march(rays(1), occupancy, box, step_size=0.5, capacity=2**31 - 1)
    samples = march(rays(1), occupancy, box, step_size=0.5, capacity=8)
    with pytest.raises(BadArgument, match=words):
        prune(torch.ones(8), samples, capacity=2**31 - 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OccupancyGrid(resolution=700), "resolution: 343000000 cells need 1.6 GB, but cpu has 1 GB left"),
        (lambda: nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 400), "resolution: 64000000 cells need 2.21 GB, but cpu"),
        (
            lambda: HashGrid(n_features=8, log2_table_size=25),
            "log2_table_size: [0-9]+ rows need [0-9.]+ GB, but cpu has 1 GB",
        ),
    ],
)
def test_a_grid_and_a_table_that_do_not_fit_are_refused(make: Callable[[], object], words: str, asked: list[int]) -> None:
    with pytest.raises(BadArgument, match=words):
        make()


def test_rays_that_do_not_fit_are_refused(asked: list[int], scene_cache: Path) -> None:
    with pytest.raises(
        BadArgument, match="capacity: 2147483647 rays need 128 GB, but cpu has 1 GB left, enough for 16777216"
    ):
        tiny_scene(scene_cache).draw(make_key(0), 2**31 - 1)


def test_samples_of_boxes_that_are_not_nested_are_counted_as_they_are_found(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SMALL", 2**10)
    monkeypatch.setattr(memory, "_system_memory", lambda: 2**20)
    boxes = torch.tensor([[-1.0, -1, -1, 1, 1, 1], [0.5, -1, -1, 3, 1, 1]])
    full, one = torch.ones(2, 4, 4, 4, dtype=torch.bool), rays(1)
    nerfacc.traverse_grids(one.origins, one.directions, full, boxes, step_size=1e-3)
    with pytest.raises(BadArgument, match=r"step_size: [0-9]+ samples need .* cpu has 0.000977 GB left, enough for 26214"):
        nerfacc.traverse_grids(one.origins, one.directions, full, boxes, step_size=1e-5)


def test_this_machine_knows_what_it_has_left() -> None:
    left = memory.available_bytes(torch.device("cpu"))
    assert left is None or 2**20 < left < 2**50
    assert memory.available_bytes(torch.device("meta")) is None


def test_a_container_bounds_what_its_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_system_memory", lambda: GIGABYTE)
    monkeypatch.setattr(memory, "_LIMITS", ((str(limit), str(used)),))
    cases = {"max": GIGABYTE, "1000": 900, "50": 0, str(2**60): GIGABYTE}
    used.write_text("100\n")
    for content, left in cases.items():
        limit.write_text(content + "\n")
        assert memory.available_bytes(torch.device("cpu")) == left


def test_a_check_comes_between_the_number_and_the_lists() -> None:
    offsets, kept = pack(torch.tensor([3, 4], dtype=torch.int32))
    order: list[object] = []

    def write(size: int) -> tuple[torch.Tensor]:
        order.append(size)
        return (torch.zeros(size),)

    _exact.write_exactly(offsets, kept, write, None, lambda total, complete: order.append((total, complete)))
    assert order == [(7, True), 7]


@pytest.mark.skipif(not library.loaded, reason="the kernels' own message")
def test_an_allocation_that_fails_says_so_in_words() -> None:
    """In a process of its own, which may have two gigabytes more than it has."""
    program = (
        "import resource, torch\n"
        "from lightning_nerf.ops.random import make_key, random_uniform\n"
        "random_uniform(make_key(0), 0, 4, 1)\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2 * 2**30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "random_uniform(make_key(0), 0, 2**30, 4)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert "out of memory on the CPU: lightning_nerf could not allocate a tensor of shape [1073741824, 4]" in last
    assert "API call failed" not in done.stderr
