"""Torch's default dtype and ``.double()`` of an estimator change nothing; float64 arguments give float64 results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_nerf
from lightning_nerf import nerfacc
from tests.fuzz.calls import CALLS
from tests.fuzz.strategies import leaves
from tests.nerfacc.occ_grids import BOX, SHAPE, random_rays

OTHERS = (torch.float64, torch.float16, torch.bfloat16)
OF_THIS_PACKAGE = [name for name in CALLS if not name.startswith("OccupancyGrid")]
N, RAYS = 7, 3


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("name", OF_THIS_PACKAGE)
def test_no_call_depends_on_the_default(name: str, dtype: torch.dtype) -> None:
    found = []
    for default in (torch.float32, dtype):
        function, arguments = CALLS[name]("cpu")
        torch.manual_seed(0)
        with default_dtype(default):
            found.append(leaves(function(**arguments)))
    same(found[1], found[0])


def used(grid: nerfacc.OccGridEstimator) -> list[Tensor]:
    """The samples of an estimator in use, and its state."""
    torch.manual_seed(1)
    rays, results = random_rays("cpu"), []
    for step in (0, 512):
        grid._update(step, lambda x: (x.norm(dim=-1) < 1).float(), occ_thre=0.5)
        for kind in ("sigma_fn", "alpha_fn"):
            functions: dict[str, Any] = {kind: lambda t_starts, *_: torch.full_like(t_starts, 0.5)}
            results += grid.sampling(*rays, **functions, render_step_size=0.1, alpha_thre=0.01, stratified=True)
    with default_dtype(torch.float32):
        intrinsics, pose = torch.tensor([[[30.0, 0.0, 10.0], [0.0, 30.0, 10.0], [0.0, 0.0, 1.0]]]), torch.eye(4)[None]
        pose[0, :3, 3] = torch.tensor([0.1, 0.2, -4.0])
    grid.mark_invisible_cells(intrinsics, pose, 20, 20)
    assert 0 < (grid.occs < 0).sum() < grid.occs.numel()
    assert any(len(r) for r in results)
    return [*results, *grid._get_all_cells(), *grid.state_dict().values()]


@pytest.mark.parametrize("dtype", OTHERS)
def test_an_occupancy_grid_that_is_built_under_another_default(dtype: torch.dtype) -> None:
    expected = used(nerfacc.OccGridEstimator([0.1 + x for x in BOX], list(SHAPE), 2))
    with default_dtype(dtype):
        grid = nerfacc.OccGridEstimator([0.1 + x for x in BOX], list(SHAPE), 2)
    same(used(grid), expected)


@pytest.mark.parametrize("convert", ["double", "half", "bfloat16"])
def test_an_occupancy_grid_keeps_its_float_type(convert: str) -> None:
    expected = used(nerfacc.OccGridEstimator([0.1 + x for x in BOX], list(SHAPE), 2))
    holder = torch.nn.ModuleDict({"grid": nerfacc.OccGridEstimator([0.1 + x for x in BOX], list(SHAPE), 2)})
    getattr(holder, convert)()
    grid = holder["grid"]
    assert isinstance(grid, nerfacc.OccGridEstimator)
    same(used(grid), expected)
    assert grid.to("meta").occs.device.type == "meta"


def test_a_state_of_another_float_type_is_taken() -> None:
    grid = nerfacc.OccGridEstimator([0.1 + x for x in BOX], list(SHAPE), 2)
    expected = used(grid)[-len(grid.state_dict()) :]
    doubles = {k: v.double() if v.is_floating_point() else v for k, v in grid.state_dict().items()}
    for assign in (False, True):
        fresh = nerfacc.OccGridEstimator(BOX, list(SHAPE), 2)
        fresh.load_state_dict(doubles, assign=assign)
        fresh.sampling(*random_rays("cpu"), render_step_size=0.1)
        same(list(fresh.state_dict().values()), expected)
        fresh._update(0, lambda x: x[:, 0].abs())


@pytest.mark.parametrize("dtype", OTHERS)
def test_proposal_networks_under_another_default(dtype: torch.dtype) -> None:
    def train(default: torch.dtype) -> list[Tensor]:
        with default_dtype(default):
            torch.manual_seed(0)
            weight = torch.ones((), dtype=torch.float32, requires_grad=True)
            estimator = nerfacc.PropNetEstimator(torch.optim.SGD([weight], 0.1)).double()
            t_starts, t_ends = estimator.sampling(
                [lambda a, b: weight * (a + b)], [8], 4, 3, 0.1, 4.0, stratified=True, requires_grad=True
            )
            trans = nerfacc.render_transmittance_from_density(t_starts, t_ends, t_ends)[0]
            loss = estimator.update_every_n_steps(trans, requires_grad=True)
            return [
                t_starts,
                t_ends,
                weight.detach(),
                torch.tensor(loss, dtype=torch.float64),
                estimator.compute_loss(trans),
            ]

    same(train(dtype), train(torch.float32))


def test_float64_edges_are_resampled_under_any_default() -> None:
    edges = torch.linspace(0, 1, 5, dtype=torch.float64).repeat(2, 1)
    expected = nerfacc.importance_sampling(nerfacc.RayIntervals(edges), edges, 3)[0].vals
    for dtype in OTHERS:
        with default_dtype(dtype):
            same([nerfacc.importance_sampling(nerfacc.RayIntervals(edges), edges, 3)[0].vals], [expected])


def samples(shape: tuple[int, ...]) -> dict[str, Tensor]:
    t = torch.arange(float(N)).expand(shape)
    return {"t_starts": t, "t_ends": t + 0.5, "sigmas": torch.full(shape, 0.3)}


@pytest.mark.parametrize("wide", ["t_starts", "t_ends", "sigmas"])
@pytest.mark.parametrize("rays", [{}, {"ray_indices": torch.tensor([0, 0, 0, 2, 2, 2, 2]), "n_rays": RAYS}])
def test_one_float64_argument_makes_float64_results(wide: str, rays: dict[str, Any]) -> None:
    given = samples((N,))
    given[wide] = given[wide].double()
    double = {name: value.double() for name, value in given.items()}
    for name in ("render_weight_from_density", "render_transmittance_from_density"):
        same(list(getattr(nerfacc, name)(**given, **rays)), list(getattr(nerfacc, name)(**double, **rays)))
    for surface in (lightning_nerf.rendering, nerfacc.rendering):
        sigmas, rgbs = given.pop("sigmas"), torch.full((N, 3), 0.5)
        out = surface(**given, **rays, rgb_sigma_fn=lambda *_, s=sigmas, c=rgbs: (c, s))
        assert {o.dtype for o in (*out[:3], out[3]["weights"], out[3]["trans"])} == {torch.float64}
        given["sigmas"] = sigmas


@pytest.mark.parametrize("t_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("behind", [None, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("channels", [3, 2])
@pytest.mark.parametrize("kind", ["rgb_sigma_fn", "rgb_alpha_fn"])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_results_without_samples_have_the_dtypes_of_those_with(
    t_dtype: torch.dtype, behind: torch.dtype | None, channels: int, kind: str, default: torch.dtype
) -> None:
    background = None if behind is None else torch.ones(channels, dtype=behind)
    for surface in (lightning_nerf.rendering, nerfacc.rendering):
        found = []
        for n in (0, N):
            t = torch.arange(float(n), dtype=torch.float32).to(t_dtype)
            rays = torch.zeros(n, dtype=torch.int64)
            values = torch.full((n, channels), 0.5, dtype=t_dtype), torch.full((n,), 0.5, dtype=t_dtype)
            with default_dtype(default):
                *out, extras = surface(t, t + 1, rays, 2, **{kind: lambda *_, v=values: v}, render_bkgd=background)
            found.append([*(o.dtype for o in out), *(extras[key].dtype for key in ("weights", "trans"))])
        assert found[0] == found[1]


def test_a_prefix_of_float64_changes_no_dtype() -> None:
    """As in NerfAcc, which multiplies in place."""
    prefix = torch.full((N,), 0.5, dtype=torch.float64)
    for value in nerfacc.render_weight_from_density(**samples((N,)), prefix_trans=prefix):
        assert value.dtype is torch.float32


def test_distances_in_half_precision_are_spread_in_float32() -> None:
    given = [torch.tensor([1000.0, 1001.0]), torch.tensor([1001.0, 1002.0])]
    weights, rays = torch.tensor([0.5, 0.5]), torch.tensor([0, 0])
    halves = nerfacc.distortion(weights, *(t.half() for t in given), rays, 1)
    same([halves], [nerfacc.distortion(weights, *given, rays, 1)])


@pytest.mark.parametrize("default", OTHERS)
def test_places_of_cells_and_of_samples_are_not_rounded_to_the_default(default: torch.dtype) -> None:
    """Integers times or over others, and integers plus a number, have the default dtype."""

    def results() -> list[Tensor]:
        grid = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], [2100, 1, 1])
        eye = torch.eye(3, dtype=torch.float32)[None]
        pose = torch.eye(4, dtype=torch.float32)[None]
        intrinsics = eye * torch.tensor([1050.0, 1.0, 1.0], dtype=torch.float32)
        grid.mark_invisible_cells(intrinsics, pose, 733, 1)
        edges = torch.linspace(0, 1, 5, dtype=torch.float64)[None]
        return [grid.occs, nerfacc.importance_sampling(nerfacc.RayIntervals(edges), edges, 5000)[0].vals]

    expected = results()
    with default_dtype(default):
        same(results(), expected)
