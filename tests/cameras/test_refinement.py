"""Corrections of cameras: what they do to rays, their derivative, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lightning_nerf.cameras import CameraRefinement, Cameras, image_rays, pixel_rays
from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.cameras.rotations import rotation_excess, similarity_basis
from lightning_nerf.checks import BadArgument
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Rays
from tests.ops.harness import rand

BOX = SceneBox(torch.tensor([[-1.5, -1.0, -1.0], [1.0, 1.5, 1.0]]))
V, SIDE = 5, 16
COEFFICIENTS = {
    "pinhole": [0.0] * 8,
    "opencv": [0.0578421, -0.0805099, -0.000980296, 0.00015575, 0, 0, 0, 0],
    "fisheye": [0.05, 0.02, -0.01, 0.002, 0, 0, 0, 0],
    "equirectangular": [0.0] * 8,
}
KINDS = {
    "pinholes": None,
    "opencv": ["opencv"] * V,
    "fisheye": ["fisheye"] * V,
    "all": ["opencv", "pinhole", "fisheye", "equirectangular", "opencv"],
}


def some_cameras(kind: str = "pinholes") -> Cameras:
    poses = spiral_poses(V, 3.0, (-10.0, 60.0))
    poses[4, :, 3] *= -0.5  # one that looks outwards
    cameras = Cameras.of_one_size(poses, torch.tensor([20.0, 22, 8, 7.5]), SIDE, SIDE, near=0.1, far=9.0)
    if (lenses := KINDS[kind]) is None:
        return cameras
    full = torch.tensor([SIDE / (2 * torch.pi), SIDE / torch.pi, SIDE / 2, SIDE / 2])
    around = torch.tensor([name == "equirectangular" for name in lenses])[:, None]
    return cameras._replace(
        intrinsics=torch.where(around, full, cameras.intrinsics),
        lens_model=torch.tensor([LENS_MODELS.index(name) for name in lenses]),
        lens=torch.tensor([COEFFICIENTS[name] for name in lenses]),
    )


def corrected(cameras: Cameras, size: float, focal: str = "shared") -> CameraRefinement:
    """A refinement with corrections of about this size."""
    refinement = CameraRefinement(focal)
    refinement.bind(cameras, BOX)
    with torch.no_grad():
        refinement.poses.copy_(size * (2 * rand(V, 6, seed=1) - 1))
        refinement.log_focal.copy_(size * (0.2 + rand(len(refinement.log_focal), seed=2)))
    return refinement


def all_pixels(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    grid = torch.cartesian_prod(torch.arange(V), torch.arange(SIDE), torch.arange(SIDE))
    return grid[:, 0], grid[:, 2], grid[:, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_rays_are_as_drawn(kind: str) -> None:
    cameras = some_cameras(kind)
    rays = pixel_rays(cameras, *all_pixels(cameras))
    refined = corrected(cameras, 0.0)(rays, cameras)
    assert torch.equal(refined.origins, rays.origins)
    if kind == "pinholes":
        assert torch.equal(refined.directions, rays.directions)
    torch.testing.assert_close(refined.directions, rays.directions, rtol=0, atol=3e-7)  # unit vectors, rounded twice
    assert torch.equal(corrected(cameras, 0.0).refined(cameras).c2w, cameras.c2w)


@pytest.mark.parametrize("focal", ["shared", "per_camera", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_corrected_rays_are_those_of_the_corrected_cameras(kind: str, focal: str) -> None:
    cameras = some_cameras(kind)
    refinement = corrected(cameras, 0.05, focal)
    pixels = all_pixels(cameras)
    got, expected = refinement(pixel_rays(cameras, *pixels), cameras), pixel_rays(refinement.refined(cameras), *pixels)
    torch.testing.assert_close(got.origins, expected.origins, rtol=0, atol=2e-6)
    torch.testing.assert_close(got.directions, expected.directions, rtol=0, atol=2e-6)
    moved = (expected.directions - pixel_rays(cameras, *pixels).directions).norm(dim=-1)
    assert float(moved.mean()) > 0.01  # there was something to correct


@pytest.mark.parametrize("size", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_finite_differences(kind: str, size: float) -> None:
    cameras = some_cameras(kind).map(lambda t: t.double() if t.is_floating_point() else t)
    refinement = corrected(some_cameras(kind), size, "per_camera").double()
    view = torch.arange(V).repeat_interleave(2)
    x, y = (SIDE * rand(2, 2 * V, seed=3)).long().unbind(0)
    rays = pixel_rays(cameras, view, x, y)

    def directions_and_origins(poses: Tensor, log_focal: Tensor) -> tuple[Tensor, Tensor]:
        after = functional_call(refinement, {"poses": poses, "log_focal": log_focal}, (rays, cameras))
        return after.directions, after.origins

    inputs = tuple(p.detach().clone().requires_grad_() for p in (refinement.poses, refinement.log_focal))
    assert torch.autograd.gradcheck(directions_and_origins, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-6, 5e-3, 2e-2, 1.0, 3.1])
def test_rotations_are_matrix_exponentials(size: float) -> None:
    vectors = size * torch.nn.functional.normalize(2 * rand(20, 3, seed=4).double() - 1, dim=1)
    cross = torch.tensor([[[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]] for x, y, z in vectors.tolist()], dtype=torch.float64)
    expected = torch.linalg.matrix_exp(cross) - torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotation_excess(vectors), expected, rtol=0, atol=1e-14)


def turned(c2w: Tensor, size: float) -> Tensor:
    vector = size * torch.tensor([[0.3, -0.5, 0.8]])
    rotation = torch.eye(3) + rotation_excess(vector)[0]
    return torch.cat([rotation @ c2w[:, :, :3], rotation @ c2w[:, :, 3:]], 2)


@pytest.mark.parametrize(
    "whole",
    [
        lambda c2w, size: torch.cat([c2w[:, :, :3], c2w[:, :, 3:] + size * torch.tensor([[1.0], [-2], [0.5]])], 2),
        lambda c2w, size: torch.cat([c2w[:, :, :3], c2w[:, :, 3:] * (1 + size)], 2),
        turned,
    ],
    ids=["moved", "scaled", "turned"],
)
def test_the_scene_as_a_whole_stays_where_it_is(whole: Callable[[Tensor, float], Tensor]) -> None:
    cameras, size = some_cameras(), 1e-3
    refinement = CameraRefinement()
    refinement.bind(cameras, BOX)
    after = whole(cameras.c2w, size)
    turn = after[:, :, :3] @ cameras.c2w[:, :, :3].mT
    vectors = torch.stack([turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], -1)
    shifts = after[:, :, 3] - cameras.c2w[:, :, 3] - torch.linalg.cross(vectors, refinement.arms)
    with torch.no_grad():
        refinement.poses.copy_(torch.cat([vectors, shifts / refinement.units[:, None]], 1))
    assert float(refinement.poses.detach().abs().max()) > 0.1 * size
    assert float(refinement.increments().detach().abs().max()) < 1e-3 * size + 2 * size**2


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_what_no_picture_tells_has_orthonormal_rows(n: int) -> None:
    positions = 2 * rand(n, 3, seed=5) - 1
    basis = similarity_basis(positions, torch.zeros(n, 3), torch.ones(n))
    assert basis.shape == (7, 6 * n)
    rank = min(7, 6 * n)
    expected = torch.diag((torch.arange(7) < rank).float())
    torch.testing.assert_close(basis @ basis.mT, expected, rtol=0, atol=1e-5)


def test_focal_lengths_of_one_camera_have_one_factor() -> None:
    cameras = some_cameras("all")
    factors = CameraRefinement("per_camera")
    factors.bind(cameras, BOX)
    assert len(factors.log_focal) == 4
    assert factors.groups[0] == factors.groups[4]
    assert len(set(factors.groups.tolist())) == 4


def test_rays_of_no_training_view_are_left_alone() -> None:
    cameras = some_cameras()
    rays = image_rays(cameras, 2)
    after = corrected(cameras, 0.1)(rays, cameras)
    assert torch.equal(after.origins, rays.origins)
    assert torch.equal(after.directions, rays.directions)


def test_a_ray_without_direction_has_no_part_in_the_gradient() -> None:
    cameras, refinement = some_cameras(), corrected(some_cameras(), 0.1)
    zero = torch.zeros(3, 3)
    after = refinement(Rays(zero, zero, zero[:, 0], zero[:, 0], cameras=torch.tensor([0, 1, -1])), cameras)
    after.directions.sum().backward()
    assert refinement.log_focal.grad is not None
    assert bool(refinement.log_focal.grad.isfinite().all())


def test_other_views_are_refused() -> None:
    cameras, refinement = some_cameras(), corrected(some_cameras(), 0.1)
    refinement.bind(cameras, BOX)
    moved = cameras._replace(c2w=cameras.c2w + torch.arange(V)[:, None, None] * 0.1)
    with pytest.raises(BadArgument, match=r"cameras: the data's are other poses .* view 4"):
        refinement.bind(moved, BOX)
    with pytest.raises(BadArgument, match=r"cameras: the data's are 3, expected the 5"):
        refinement.bind(cameras.chosen(slice(0, 3)), BOX)
    with pytest.raises(BadArgument, match=r"cameras: expected the 5 that were refined, got 3"):
        refinement.refined(cameras.chosen(slice(0, 3)))
    rays = image_rays(cameras, 0)._replace(cameras=None)
    with pytest.raises(BadArgument, match=r"rays\.cameras: expected the training view"):
        refinement(rays, cameras)
    with pytest.raises(BadArgument, match="focal: expected"):
        CameraRefinement("each")
