"""Fading of hash levels that are finer than a pixel is at the sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import InstantNGPField, ProposalField, SyntheticUnboundedScene, UnboundedNeRF
from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.encodings import HashGrid
from lightning_nerf.estimators import Proposal, Uniform
from lightning_nerf.fields import RadianceField
from lightning_nerf.scene_box import CONTRACTIONS, SceneBox
from lightning_nerf.types import Rays
from tests.ops.harness import rand
from tests.scenes import trainer

CUBE = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
OBLONG = torch.tensor([[-1.0, 2.0, 0.25], [3.0, 2.5, 1.25]])
SMALL: dict[str, Any] = {"n_levels": 4, "log2_table_size": 12, "base_resolution": 4, "max_resolution": 64}
KINDS: dict[str, Callable[..., RadianceField]] = {
    "instant_ngp": lambda **more: InstantNGPField(**SMALL, width=16, **more),
    "proposal": lambda **more: ProposalField(**SMALL, **more),
}


# -- the grid ----------------------------------------------------------------------------------------------------------


def check_fading(factor: float) -> None:
    """Against the equation in Python's numbers, level by level."""
    grid, x = HashGrid(3, n_features=2, **SMALL), rand(40, 3, seed=0)
    sigmas = torch.logspace(-4, 1, 40)
    expected = grid(x).view(40, 4, 2) * torch.tensor(
        [[math.erf(1 / math.sqrt(factor * s**2 * n**2)) for n in grid.levels[:, 0].tolist()] for s in sigmas.tolist()]
    ).unsqueeze(-1)
    torch.testing.assert_close(grid(x, sigmas).view(40, 4, 2), expected, rtol=1e-5, atol=1e-12)


def test_levels_fade_by_zipnerfs_equation() -> None:
    check_fading(8.0)
    with pytest.raises(AssertionError):
        check_fading(4.0)


def test_a_point_sees_all_levels_and_a_wide_sample_none() -> None:
    grid, x = HashGrid(3, n_features=2, **SMALL), rand(9, 3, seed=0)
    assert torch.equal(grid(x, torch.zeros(9)), grid(x))
    assert float(grid(x, torch.full((9,), 1e6)).detach().abs().max()) < 1e-9
    fading = grid._fading(torch.tensor([0.02]))[0]
    assert (fading.diff() < 0).all()  # the finer, the less
    assert grid(x[:0], torch.zeros(0)).shape == (0, 8)


def test_tables_get_faded_gradients() -> None:
    grid, x = HashGrid(3, n_features=2, **SMALL), rand(1, 3, seed=0)
    gradients = []
    for sigmas in (None, torch.tensor([0.05])):
        (gradient,) = torch.autograd.grad(grid(x, sigmas).sum(), grid.table)
        gradients.append(gradient)
    fading = grid._fading(torch.tensor([0.05]))[0]
    for i, (_, offset, size) in enumerate(grid.levels.tolist()):
        rows = slice(offset, offset + size)
        torch.testing.assert_close(gradients[1][rows], fading[i] * gradients[0][rows])


@pytest.mark.parametrize("sigmas", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), 0.1])
def test_sigmas_are_one_for_each_position(sigmas: Any) -> None:
    with pytest.raises((BadArgument, BadType), match=r"^sigmas: expected"):
        HashGrid(3, **SMALL)(torch.rand(2, 3), sigmas)


# -- lengths in the unit cube ------------------------------------------------------------------------------------------


def check_scale(kind: str, power: float) -> None:
    """Against the determinant of the Jacobian, by autograd in float64."""
    box = SceneBox(OBLONG.double(), kind)
    x = rand(60, 3, seed=4, low=-1, high=1).double() * torch.logspace(-1, 3, 60)[:, None]
    if kind == "ndc":
        x[:, 1] = 2 + x[:, 1].abs()
    jacobian = torch.func.vmap(torch.func.jacrev(box.to_unit))(x)
    torch.testing.assert_close(box.unit_scale(x), torch.linalg.det(jacobian).abs() ** power)


@pytest.mark.parametrize("kind", CONTRACTIONS)
def test_a_short_length_is_scaled_by_the_cube_root_of_the_volume(kind: str) -> None:
    check_scale(kind, 1 / 3)
    with pytest.raises(AssertionError):
        check_scale(kind, 1 / 2)


@pytest.mark.parametrize("kind", CONTRACTIONS)
def test_no_scale_is_endless(kind: str) -> None:
    values = torch.tensor([0.0, 1.0, -1e30, 1e15, math.inf])
    scale = SceneBox(OBLONG, kind).unit_scale(torch.cartesian_prod(values, values, values))
    assert scale.shape == (125,)
    assert bool((scale.isfinite() & (scale >= 0)).all())


# -- fields ------------------------------------------------------------------------------------------------------------


def bound(kind: str, **more: Any) -> RadianceField:
    torch.manual_seed(0)
    field = KINDS[kind](**more)
    field.bind(SceneBox(CUBE, "l2"))
    return field


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_without_it_asks_for_no_footprints_and_has_the_same_parameters(kind: str) -> None:
    plain, fading = bound(kind), bound(kind, antialias=True)
    assert list(plain.wants) == []
    assert list(fading.wants) == ["footprints"]
    for (name, a), (other, b) in zip(plain.named_parameters(), fading.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    x, d = rand(20, 3, seed=1, low=-3, high=3), rand(20, 3, seed=2)
    expected = plain(x, d)
    for found in (fading(x, d, footprints=torch.zeros(20)), fading(x, d)):
        assert torch.equal(found.density, expected.density)
        assert torch.equal(found.rgb, expected.rgb)
    assert torch.equal(fading.density(x), plain.density(x))  # nothing looks at the points
    wide = fading.density(x, footprints=torch.full((20,), 1e3))
    assert not torch.equal(wide, plain.density(x))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_as_wide_as_their_pixel_is_there(kind: str) -> None:
    field = bound(kind, antialias=True)
    rays = Rays(torch.zeros(2, 3), torch.eye(3)[:2], torch.full((2,), 0.1), torch.full((2,), 6.0))
    rays = rays._replace(footprint=torch.tensor([0.01, 0.2]))
    samples = Uniform(5, clip_to_box=False).place(rays).samples
    t = 0.5 * (samples.t_starts + samples.t_ends)
    index = samples.ray_indices.long()
    points, sides = t[:, None] * rays.directions[index], t * torch.tensor([0.01, 0.2])[index]
    expected = field(points, rays.directions[index], footprints=sides)  # type: ignore[call-arg]
    torch.testing.assert_close(field.at_samples(rays, samples).density, expected.density)
    torch.testing.assert_close(field.query(rays, samples).values, expected.density)
    with pytest.raises(BadArgument, match="wants footprints, which these rays do not have"):
        field.query(rays._replace(footprint=None), samples)


def test_the_kernel_of_the_whole_field_is_left_out() -> None:
    shape: dict[str, Any] = {"n_levels": 8, "n_features": 4, "log2_table_size": 10, "max_resolution": 64}
    assert InstantNGPField(**shape).fused
    assert not InstantNGPField(**shape, antialias=True).fused


def test_a_subclass_keeps_what_it_wants() -> None:
    class Timed(InstantNGPField):
        wants = ("times",)

    assert list(Timed(**SMALL).wants) == ["times"]
    assert list(Timed(**SMALL, antialias=True).wants) == ["times", "footprints"]


# -- what it is for ----------------------------------------------------------------------------------------------------

PERIOD = 0.25  # of the checkered plane z = 0
NEAR, FAR = 0.01, 0.4  # sides of pixels: a 25th of a period, and more than one


def seen(centers: Tensor, sides: Tensor) -> Tensor:
    """What pixels [N] show of the checkered plane: the mean over a square, by 8 x 8 points of it."""
    at = (torch.arange(8) + 0.5) / 8 - 0.5
    grid = torch.cartesian_prod(at, at)
    points = centers[:, None] + sides[:, None, None] * grid
    return ((2 * points / PERIOD).floor().sum(-1) % 2).mean(1)


def errors(antialias: bool, steps: int = 120) -> dict[str, float]:
    """Mean square error of pixels near and far, of a field that has learned from both."""
    torch.manual_seed(0)
    field = InstantNGPField(4, 2, 14, 4, 64, width=16, sh_degree=1, antialias=antialias)
    field.bind(SceneBox(CUBE))
    optimizer = torch.optim.Adam(field.parameters(), lr=0.01)
    noise = torch.Generator().manual_seed(1)

    def pixels(n: int, sides: Tensor) -> tuple[Tensor, Tensor]:
        centers = torch.rand(n, 2, generator=noise) * 1.2 - 0.6
        points = torch.nn.functional.pad(centers, (0, 1))
        more = {"footprints": sides} if antialias else {}
        return field(points, torch.ones(n, 3), **more).rgb.mean(1), seen(centers, sides)

    for _ in range(steps):
        both = torch.where(torch.rand(1024, generator=noise) < 0.5, NEAR, FAR)
        found, truth = pixels(1024, both)
        optimizer.zero_grad()
        (found - truth).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        result = {}
        for name, side in (("near", NEAR), ("far", FAR)):
            found, truth = pixels(4096, torch.full((4096,), side))
            result[name] = float((found - truth).square().mean())
    return result


def test_a_checkered_plane_is_grey_from_afar_and_sharp_from_near() -> None:
    """Without footprints a field has one answer for both, between the two."""
    plain, fading = errors(antialias=False), errors(antialias=True)
    assert fading["far"] < plain["far"] / 4
    assert fading["near"] < plain["near"] / 2


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_scene_is_trained_and_rendered_with_it(everywhere: bool, tmp_path: Path, scene_cache: Path) -> None:
    fields = [ProposalField(n_levels=2, log2_table_size=8, max_resolution=32, antialias=everywhere)]
    field = InstantNGPField(**SMALL, width=16, antialias=True)
    estimator = Proposal(fields, counts=[12], n_fine=8, spacing="power")
    module = UnboundedNeRF(field, estimator, samples_per_step=512, max_rays=64, initial_rays=64, seed=1)
    data = SyntheticUnboundedScene(resolution=24, n_train=6, n_test=1, n_val=0, cache_dir=str(scene_cache))
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(module, datamodule=data)
    assert module.render_view("test", 0, data).rgb.isfinite().all()
    fit.save_checkpoint(tmp_path / "it.ckpt")
    loaded = UnboundedNeRF.load_from_checkpoint(tmp_path / "it.ckpt")
    assert list(loaded.field.wants) == ["footprints"]
    assert torch.equal(loaded.render_view("test", 0, data).rgb, module.render_view("test", 0, data).rgb)
