"""Batches whose first rays alone are active, as steps have them: threads share the work, and the bits stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_nerf.cpu_threads import usable_cpus
from lightning_nerf.ops import library
from lightning_nerf.ops.march import march
from lightning_nerf.types import PackedSamples, Rays

ROOT = Path(__file__).parents[2]
BOX = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]
# The main thread's share of the CPU time. Threads sleep while they wait, else they would seem to work.
SHARE = """
import time, torch
from tests.ops.test_uneven_rays import marched, uneven
rays = uneven(8192)
marched(rays)
own, all_threads = time.thread_time(), time.process_time()
for _ in range(10):
    marched(rays)
print((time.thread_time() - own) / (time.process_time() - all_threads))
"""


def uneven(n: int) -> Rays:
    """Of n rays the first eighth is active."""
    angle = torch.arange(n) * 0.7
    directions = torch.stack([angle.cos(), angle.sin(), (angle * 0.3).sin()], -1)
    far = torch.where(torch.arange(n) < n // 8, 6.0, 0.0)
    return Rays(-3 * directions, directions, torch.full((n,), 1.0), far)


def marched(rays: Rays) -> PackedSamples:
    cells = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    cells[:, ::3] = False
    return march(rays, cells, torch.tensor(BOX), step_size=0.002)


@pytest.mark.skipif(not library.loaded, reason="no compiled library")
@pytest.mark.skipif(usable_cpus() < 2, reason="one CPU")
def test_two_threads_share_the_march_of_the_active_rays() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, "-c", SHARE], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 0.75  # half of it, and what runs between the parallel parts


@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_the_bits_do_not_depend_on_the_number_of_threads(n: int) -> None:
    before, rays = torch.get_num_threads(), uneven(n)
    rays = rays._replace(far=rays.far.clamp(min=0).index_fill(0, torch.tensor([0, n - 1]), 6.0))
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(marched(rays))
    finally:
        torch.set_num_threads(before)
    assert len(found[0].t_starts) > 0
    for other in found[1:]:
        for came, expected in zip(other, found[0], strict=True):
            assert torch.equal(came, expected)
