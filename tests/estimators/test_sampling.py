"""``Estimator.sampling`` and the grid without Lightning: plain tensors in and out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import OccupancyGrid, SceneBox, rendering
from lightning_nerf.estimators import Hierarchical, Uniform
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.ops.march import march
from lightning_nerf.ops.random import key_from_torch, make_key
from lightning_nerf.types import Densities, PackedSamples, Placement, Rays
from tests.executors.fits import PlainField
from tests.ops.harness import DEVICES, rand

BOX = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
STEP = 0.05


def grid_of(device: str = "cpu", **options: Any) -> OccupancyGrid:
    return OccupancyGrid(**({"resolution": 16, "step_size": STEP, "early_stop_eps": 0.0} | options)).bind(BOX).to(device)


def rays_of(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), dim=-1) * 3
    directions = torch.nn.functional.normalize(rand(n, 3, seed=2, low=-0.5, high=0.5) - origins, dim=-1)
    return origins.to(device), directions.to(device)


def visible_by_hand(
    found: tuple[Tensor, Tensor, Tensor], values: Tensor, eps: float, threshold: float, *, alphas: bool
) -> list[int]:
    """Indices of the samples that are neither hidden nor transparent: a loop in float64."""
    rays, starts, ends = (f.tolist() for f in found)
    kept, light, ray = [], 1.0, -1
    for i, value in enumerate(values.tolist()):
        light, ray = (light, ray) if rays[i] == ray else (1.0, rays[i])
        depth = (
            torch.tensor(value).double() if alphas else -torch.expm1(torch.tensor(-value * (ends[i] - starts[i])).double())
        )
        if light >= eps and depth >= threshold:
            kept.append(i)
        light *= 1 - float(depth)
    return kept


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_function_all_candidates_are_returned(device: str) -> None:
    grid, (origins, directions) = grid_of(device), rays_of(40, device)
    ray_indices, t_starts, t_ends = grid.sampling(origins, directions)
    near, far = torch.zeros(40, device=device), torch.full((40,), 1e10, device=device)
    marched = march(Rays(origins, directions, near, far), grid.binaries, grid.aabb, step_size=STEP)
    assert ray_indices.dtype is torch.int64
    assert torch.equal(ray_indices, marched.ray_indices.long())
    assert torch.equal(t_starts, marched.t_starts)
    assert torch.equal(t_ends, marched.t_ends)
    assert len(ray_indices) > 400


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alphas", [False, True])
@pytest.mark.parametrize(("eps", "threshold"), [(0.3, 0.0), (0.0, 0.2), (0.25, 0.15)])
def test_what_is_hidden_or_transparent_is_dropped(device: str, eps: float, threshold: float, alphas: bool) -> None:
    grid, rays = grid_of(device), rays_of(40, device)
    grid.mean.fill_(1.0)
    asked = []

    def function(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        assert ray_indices.dtype is torch.int64
        assert not torch.is_grad_enabled()
        asked.append(rand(len(t_starts), seed=3, high=0.4 if alphas else 8.0).to(device))
        return asked[-1]

    options = {"alpha_fn" if alphas else "sigma_fn": function}
    found = grid.sampling(*rays, **options, early_stop_eps=eps, alpha_thre=threshold)
    everything = grid.sampling(*rays)
    kept = visible_by_hand(everything, asked[0], eps, threshold, alphas=alphas)
    assert 0 < len(kept) < len(everything[0])
    for mine, whole in zip(found, everything, strict=True):
        assert torch.equal(mine, whole[kept])


def test_limits_of_t() -> None:
    grid, (origins, directions) = grid_of(), rays_of(30)
    t_min, t_max = rand(30, seed=5, low=2.0, high=3.0), rand(30, seed=6, low=3.0, high=4.0)
    ray_indices, t_starts, t_ends = grid.sampling(
        origins, directions, near_plane=2.4, far_plane=3.6, t_min=t_min, t_max=t_max
    )
    middle = (t_starts + t_ends) / 2
    assert (middle >= t_min.clamp(min=2.4)[ray_indices]).all()
    assert (middle < t_max.clamp(max=3.6)[ray_indices]).all()
    assert len(middle) > 100
    assert len(grid.sampling(origins, directions, near_plane=5.0, far_plane=1.0)[0]) == 0


def test_settings_are_the_estimators_own_unless_given() -> None:
    grid, rays = grid_of(), rays_of(30)

    def length(**options: float) -> Tensor:
        _, t_starts, t_ends = grid.sampling(*rays, **options)  # type: ignore[arg-type]
        return t_ends - t_starts

    torch.testing.assert_close(length(), torch.full_like(length(), STEP), rtol=0, atol=1e-6)
    finer = length(render_step_size=0.01)
    torch.testing.assert_close(finer, torch.full_like(finer, 0.01), rtol=0, atol=1e-6)
    assert len(finer) > 4 * len(length())
    growing = length(cone_angle=0.05)
    assert (growing > 1.5 * STEP).all()
    transparent = lambda t_starts, *_: torch.full_like(t_starts, 0.1)  # noqa: E731
    grid.mean.fill_(1.0)
    assert len(grid.sampling(*rays, transparent)[0]) == 0  # its opacity of 0.005 is below alpha_threshold = 0.01
    assert len(grid.sampling(*rays, transparent, alpha_thre=0.004)[0]) == len(length())
    grid.mean.fill_(0.002)  # a young field's samples are kept
    assert len(grid.sampling(*rays, transparent)[0]) == len(length())
    assert len(grid.sampling(*rays, transparent, alpha_thre=0.5)[0]) == len(length())


def test_the_function_is_not_asked_in_vain() -> None:
    grid, (origins, directions) = grid_of(), rays_of(10)

    def never(*_: Tensor) -> Tensor:
        raise AssertionError("asked in vain")

    everything = grid.sampling(origins, directions)
    kept = grid.sampling(origins, directions, never, early_stop_eps=0.0, alpha_thre=0.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, everything, strict=True))
    for nothing in (grid.sampling(origins, -directions, never), grid.sampling(origins[:0], directions[:0], alpha_fn=never)):
        assert [len(t) for t in nothing] == [0, 0, 0]
        assert nothing[0].dtype is torch.int64


@pytest.mark.parametrize("device", DEVICES)
def test_jitter_follows_torchs_seed(device: str) -> None:
    grid, rays = grid_of(device), rays_of(30, device)

    def starts() -> Tensor:
        return grid.sampling(*rays, stratified=True)[1]

    torch.manual_seed(5)
    first, second = starts(), starts()
    torch.manual_seed(5)
    assert torch.equal(starts(), first)
    assert torch.equal(starts(), second)
    assert not torch.equal(first[:50], second[:50])
    plain = grid.sampling(*rays)[1]
    assert torch.equal(plain, grid.sampling(*rays)[1])
    torch.manual_seed(5)
    keys = [key_from_torch(device) for _ in range(2)]
    assert not torch.equal(*keys)
    assert keys[0].shape == (3,)
    assert keys[0].dtype is torch.int64


@pytest.mark.gpu
def test_jitter_and_updates_draw_without_synchronization() -> None:
    grid = grid_of("cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        grid.update(lambda p: torch.ones_like(p[:, 0]), step=0)
        grid.update(lambda p: torch.ones_like(p[:, 0]), step=300)
        key_from_torch("cuda")
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_an_estimator_of_ones_own_needs_only_place() -> None:
    class EveryHalf(Estimator):
        def bind(self, scene_box: Any) -> EveryHalf:
            return self

        def place(self, rays: Rays, query: Any = None, *, key: Tensor | None = None, **_: Any) -> Placement:
            n = rays.origins.shape[0]
            starts = torch.tensor([0.0, 0.5]).repeat(n) + (0.0 if key is None else 0.1)
            offsets = torch.arange(0, 2 * n + 1, 2, dtype=torch.int32)
            rows = torch.arange(n, dtype=torch.int32).repeat_interleave(2)
            return Placement(PackedSamples(starts, starts + 0.5, rows, offsets, torch.ones(n, dtype=torch.bool)))

    estimator, rays = EveryHalf(), rays_of(3)
    ray_indices, t_starts, _ = estimator.sampling(*rays)
    assert ray_indices.tolist() == [0, 0, 1, 1, 2, 2]
    assert (estimator.sampling(*rays, stratified=True)[1] == t_starts + 0.1).all()
    kept = estimator.sampling(*rays, sigma_fn=lambda t_starts, *_: torch.where(t_starts == 0, 100.0, 1.0))
    assert kept[0].tolist() == [0, 1, 2]  # by NerfAcc's defaults
    kept = estimator.sampling(*rays, alpha_fn=lambda t_starts, *_: t_starts, alpha_thre=0.3)
    assert kept[1].tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="render_step_size: EveryHalf has no such setting"):
        estimator.sampling(*rays, render_step_size=0.1)


WALL, VEIL = 2.3, 0.3  # begins at this t; density in front of it


def wall(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
    """A veil on the first rays, nothing on the last ones, and a wall behind."""
    veil = torch.where(ray_indices < 20, VEIL, 0.0)
    return torch.where(0.5 * (t_starts + t_ends) > WALL, 200.0, veil)


def wall_of_samples(rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
    return Densities(wall(samples.t_starts, samples.t_ends, samples.ray_indices))


class Fog(PlainField):
    """A coarse field that is densest at the middle of the box."""

    def density(self, positions: Tensor) -> Tensor:
        return 4 * (1 - positions.norm(dim=-1)).clamp(min=0)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("own_field", [False, True])
@pytest.mark.parametrize("thresholds", [{}, {"alpha_threshold": 0.005, "early_stop_eps": 0.01}])
def test_an_estimator_that_places_by_densities_gives_what_it_places(
    thresholds: dict[str, float], own_field: bool, stratified: bool
) -> None:
    estimator = Hierarchical(16, 12, field=Fog() if own_field else None, **thresholds).bind(BOX)
    origins, directions = rays_of(40)
    rays = Rays(origins, directions, torch.zeros(40), torch.full((40,), 1e10))
    torch.manual_seed(3)
    found = estimator.sampling(origins, directions, wall, stratified=stratified)
    torch.manual_seed(3)
    with torch.no_grad():
        placed = estimator.place(rays, wall_of_samples, key=key_from_torch("cpu") if stratified else None).samples
    for mine, theirs in zip(found, (placed.ray_indices.long(), placed.t_starts, placed.t_ends), strict=True):
        assert torch.equal(mine, theirs)
    everything = 28 * int(estimator.place(rays).samples.offsets.diff().bool().sum())
    assert 0 < len(found[0]) < everything if thresholds else len(found[0]) == everything


def test_thresholds_of_the_caller_drop_more_of_what_is_placed_by_densities() -> None:
    estimator, rays = Hierarchical(16, 12).bind(BOX), rays_of(40)
    everything = estimator.sampling(*rays, wall)
    kept = visible_by_hand(everything, wall(everything[1], everything[2], everything[0]), 0.1, 0.005, alphas=False)
    assert 0 < len(kept) < len(everything[0]) / 2
    found = estimator.sampling(*rays, wall, early_stop_eps=0.1, alpha_thre=0.005)
    for mine, whole in zip(found, everything, strict=True):
        assert torch.equal(mine, whole[kept])
    for nothing in (estimator.sampling(rays[0], -rays[1], wall), estimator.sampling(rays[0][:0], rays[1][:0], wall)):
        assert [len(t) for t in nothing] == [0, 0, 0]


def test_opacities_are_refused_where_densities_decide() -> None:
    def opacities(t_starts: Tensor, *_: Tensor) -> Tensor:
        return torch.full_like(t_starts, 0.5)

    rays = rays_of(4)
    with pytest.raises(ValueError, match="alpha_fn: Hierarchical asks for densities, expected sigma_fn in its place"):
        Hierarchical(4, 3).bind(BOX).sampling(*rays, alpha_fn=opacities)
    with pytest.raises(ValueError, match=r"sigma_fn: expected values of shape \[\d+\], got \[\]"):
        Hierarchical(4, 3).bind(BOX).sampling(*rays, sigma_fn=lambda *_: torch.ones(()))
    with pytest.raises(ValueError, match="render_step_size: Hierarchical has no such setting"):
        Hierarchical(4, 3).bind(BOX).sampling(*rays, sigma_fn=wall, render_step_size=0.1)
    coarse = Hierarchical(4, 3, field=Fog()).bind(BOX)  # whose densities decide, and no thresholds
    hit = len(coarse.sampling(*rays)[0]) // 7
    assert len(coarse.sampling(*rays, alpha_fn=opacities)[0]) == 7 * hit > 0
    assert len(coarse.sampling(*rays, alpha_fn=opacities, early_stop_eps=0.2)[0]) == 3 * hit
    kept = Uniform(8).bind(BOX).sampling(*rays, alpha_fn=opacities, early_stop_eps=0.2)
    assert len(kept[0]) == 3 * hit


def test_binding_takes_a_box_a_tensor_or_six_numbers() -> None:
    corners = torch.tensor(BOX).view(2, 3)
    for box in (SceneBox(corners), corners, corners.view(6), BOX, corners.double()):
        grid = OccupancyGrid(resolution=4)
        assert grid.bind(box) is grid
        assert torch.equal(grid.aabb, corners)
    for bad in (corners.view(3, 2), torch.ones(5), [[0, 0, 0, 1, 1, 1]]):
        with pytest.raises(ValueError, match=r"scene_box: expected corners of shape \[2, 3\] or \[6\]"):
            OccupancyGrid(resolution=4).bind(bad)  # type: ignore[arg-type]


def test_an_update_without_a_key_follows_torchs_seed() -> None:
    def occupied(seed: int) -> Tensor:
        grid = grid_of()
        torch.manual_seed(seed)
        for step in (0, 300):
            grid.update(lambda p: (p.norm(dim=-1) < 0.52).float() * 50, step=step)
        return grid.occs

    assert torch.equal(occupied(1), occupied(1))
    assert not torch.equal(occupied(1), occupied(2))
    with_key = grid_of()
    with_key.update(lambda p: (p.norm(dim=-1) < 0.52).float() * 50, step=0, key=make_key(1))
    assert 0 < with_key.occupied_share() < 0.2


def test_bad_arguments_are_named() -> None:
    grid, (origins, directions) = grid_of(), rays_of(4)
    ones = lambda t_starts, *_: torch.ones_like(t_starts)  # noqa: E731
    for options, message in [
        ({"rays_o": origins[:, :2]}, r"rays_o: expected shape \[R, 3\], got \[4, 2\]"),
        ({"rays_d": directions[:3]}, r"rays_d: expected shape \[4, 3\], got \[3, 3\]"),
        ({"rays_d": directions.to("meta")}, r"rays_d: expected a tensor on cpu \(where rays_o is\), got meta"),
        ({"t_min": torch.zeros(3)}, r"t_min: expected shape \[4\], got \[3\]"),
        ({"t_max": torch.zeros(4, device="meta")}, r"t_max: expected a tensor on cpu"),
        ({"sigma_fn": ones, "alpha_fn": ones}, "sigma_fn, alpha_fn: expected at most one"),
        ({"sigma_fn": lambda t, *_: t[:, None]}, r"sigma_fn: expected values of shape \[\d+\], got \[\d+, 1\]"),
        ({"alpha_fn": lambda t, *_: t[1:]}, r"alpha_fn: expected values of shape"),
        ({"render_step_size": -1.0}, "step_size: expected a positive float32, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            grid.sampling(**({"rays_o": origins, "rays_d": directions} | options))


def test_a_plain_loop_learns_a_ball() -> None:
    """No Lightning: a density grid of 8^3 learns which rays hit a ball, on samples that its occupancy places."""
    torch.manual_seed(0)
    grid = OccupancyGrid(resolution=8, step_size=0.1, warmup_steps=20).bind(BOX)
    logits = torch.zeros(1, 1, 12, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)

    def density(positions: Tensor) -> Tensor:
        found = torch.nn.functional.grid_sample(logits, positions.view(1, 1, 1, -1, 3), align_corners=True)
        return torch.nn.functional.softplus(found.view(-1))

    origins, directions = rays_of(512)

    def at(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return density(origins[ray_indices] + directions[ray_indices] * ((t_starts + t_ends) / 2)[:, None])

    closest = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
    truth = (closest < 0.5).float()[:, None]
    losses = []
    for step in range(40):
        if step % 8 == 0:
            grid.update(density, step=step)
        ray_indices, t_starts, t_ends = grid.sampling(origins, directions, at, stratified=True)
        opacities = rendering(
            t_starts, t_ends, ray_indices, 512, lambda *samples: (torch.ones(len(samples[0]), 3), at(*samples))
        )[1]
        loss = (opacities - truth).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
