"""Two processes train one field, over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.modules.ddp import BAD, EMPTY, HALF_EMPTY, STEPS, STRATEGIES
from tests.scenes import tiny_module, tiny_scene

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ddp")
    tiny_scene(scene_cache, n_val=4, n_test=3).setup("fit")  # rendered once, not by both
    subprocess.run(
        [sys.executable, "-m", "tests.modules.ddp", str(scene_cache), str(folder)],
        check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    return {name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)] for name in STRATEGIES}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [t for key in value for t in tensors(value[key])]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_moments_and_grids_are_equal_to_the_bit(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    first, second = ranks[strategy]
    for name, value in first["state"].items():
        if name not in ("key", "n_rays"):  # each rank's own
            assert torch.equal(value, second["state"][name]), name
    for a, b in zip(tensors(first["optimizer"]), tensors(second["optimizer"]), strict=True):
        assert torch.equal(a, b)
    assert len(tensors(first["optimizer"])) > 10
    assert 0 < first["state"]["estimator.binaries"].float().mean() < 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_draw_rays_of_their_own(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    first, second = ranks[strategy]
    assert len(first["rays"]) == len(second["rays"]) == STEPS
    drawn = [torch.stack(seen["rays"]).flatten(1) for seen in (first, second)]  # of few pixels: some rays are drawn twice
    assert len(torch.cat(drawn).unique(dim=0)) == 2 * STEPS
    assert (drawn[0] == drawn[1]).float().mean() < 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_rank_evaluates_half_of_the_cells(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    grid = tiny_module().estimator
    n = grid.occs.numel()
    first, second = (ranks[strategy][rank]["cells"] for rank in range(2))
    assert len(first) == len(second) == -(-STEPS // 8)
    assert [seen["keys"] for seen in ranks[strategy]] == [[[3, 0, step] for step in range(0, STEPS, 8)]] * 2
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert len(a) == len(b)
        if i * 8 < grid.warmup_steps:
            assert torch.equal(torch.cat([a, b]), torch.arange(n, dtype=torch.int32))
        else:
            assert len(a) + len(b) == 2 * (n // 4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_skip_what_one_cannot_learn_from(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    for seen in ranks[strategy]:
        weights = seen["weights"]
        unchanged = [i for i in range(1, STEPS) if torch.equal(weights[i], weights[i - 1])]
        assert unchanged == [BAD, EMPTY]
        assert HALF_EMPTY not in unchanged  # the other rank had samples
        assert seen["skipped"] == 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_views_are_shared_and_scored_as_a_whole(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    first, second = ranks[strategy]
    assert len(first["scores"]) == len(second["scores"]) == 2
    scores = {**first["scores"], **second["scores"]}
    assert len(scores) == 4
    assert first["psnr"] == second["psnr"] == pytest.approx(sum(scores.values()) / 4, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_results_are_of_all_processes(ranks: dict[str, list[dict[str, Any]]], strategy: str) -> None:
    first, second = ranks[strategy]
    assert len(first["tested"]) == len(second["tested"]) == 2  # of three views, one of them twice
    results, scores = first["results"], {**first["tested"], **second["tested"]}
    assert results["images"] == 3
    assert list(results["psnr_per_image"]) == sorted(scores)
    assert results["psnr_per_image"] == pytest.approx(scores)
    assert results["psnr"] == pytest.approx(sum(scores.values()) / 3)
    samples = first["samples"] + second["samples"]
    assert first["samples"] != second["samples"]
    assert results["samples_per_second"] * results["training_seconds"] == pytest.approx(samples)
    assert results["fill"] == pytest.approx(samples / STEPS / 2 / 2048)
