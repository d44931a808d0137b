from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.scene_box import CONTRACTIONS, SceneBox, check_box, contract, encodable, encoded_reach, expand
from tests.ops.harness import assert_detected, generator, rand

KINDS = pytest.mark.parametrize("kind", ["l2", "linf"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CUBE = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
OBLONG = torch.tensor([[-1.0, 2.0, 0.25], [3.0, 2.5, 1.25]])


def norm(x: Tensor, kind: str) -> Tensor:
    return x.norm(dim=-1) if kind == "l2" else x.abs().amax(-1)


def points(kind: str, dtype: torch.dtype, low: float, high: float, n: int = 20_000) -> Tensor:
    """In all directions, the axes among them, at norms from 10^low to 10^high."""
    x = torch.randn(n, 3, generator=generator(0), dtype=torch.float64)
    x[:6] = torch.cat([torch.eye(3), -torch.eye(3)])
    x = x / norm(x, kind)[:, None] * 10 ** rand(n, 1, seed=1, low=low, high=high).double()
    return x.to(dtype)


def check_equation(kind: str, box: Tensor, outside: str) -> None:
    """Against equation 10 of Mip-NeRF 360, point by point in Python's numbers."""
    low, high = box.tolist()
    for point in (points(kind, torch.float64, -2, 3, n=200) * 2).tolist():
        world = [a + (x + 1) / 2 * (b - a) for x, a, b in zip(point, low, high, strict=True)]
        size = math.hypot(*point) if outside == "l2" else max(map(abs, point))
        factor = 1.0 if size <= 1 else (2 - 1 / size) / size
        expected = torch.tensor([[(2 + factor * x) / 4 for x in point]], dtype=torch.float64)  # radius 2 to the unit cube
        unit = SceneBox(box.double(), kind).to_unit(torch.tensor([world], dtype=torch.float64))
        torch.testing.assert_close(unit, expected)


@KINDS
@pytest.mark.parametrize("box", [CUBE, OBLONG], ids=["cube", "oblong"])
def test_space_is_contracted_by_the_papers_equation(kind: str, box: Tensor) -> None:
    check_equation(kind, box, kind)


def test_the_equations_check_detects_another_norm() -> None:
    assert_detected(lambda: check_equation("l2", CUBE, "linf"))


@DTYPES
def test_without_contraction_the_box_is_the_unit_cube(dtype: torch.dtype) -> None:
    box = SceneBox(OBLONG.to(dtype))
    torch.testing.assert_close(box.to_unit(OBLONG.to(dtype)), torch.tensor([[0.0] * 3, [1.0] * 3], dtype=dtype))
    x = points("l2", dtype, -2, 2)
    unit = box.to_unit(x)
    torch.testing.assert_close(unit, (x - box.aabb[0]) / (box.aabb[1] - box.aabb[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(box.from_unit(unit), x, atol=1e-5, rtol=1e-5)
    assert bool((unit < 0).any())
    assert bool((unit > 1).any())


@KINDS
@DTYPES
def test_everything_lands_in_the_unit_cube(kind: str, dtype: torch.dtype) -> None:
    far = [math.inf, -math.inf, 1e30, -1e38, 0.0]
    corners = torch.cartesian_prod(*[torch.tensor(far, dtype=dtype)] * 3)
    for box in (CUBE, OBLONG):
        for x in (points(kind, dtype, -4, 38), corners):
            unit = SceneBox(box.to(dtype), kind).to_unit(x)
            assert bool((unit >= 0).all())
            assert bool((unit <= 1).all())
    unit = SceneBox(CUBE.to(dtype), kind).to_unit(points(kind, dtype, 6, 38))
    # All but at its surface: of the ball of radius 2, or of the cube.
    torch.testing.assert_close(norm(4 * unit - 2, kind), torch.full((20_000,), 2.0, dtype=dtype), atol=2e-6, rtol=0)


@KINDS
@DTYPES
def test_the_inside_is_moved_by_nothing_but_the_scale(kind: str, dtype: torch.dtype) -> None:
    x = points(kind, dtype, -4, 0)
    x = x[norm(x, kind) <= 1]
    assert len(x) > 19_000
    assert torch.equal(contract(x, kind), x)
    assert torch.equal(contract(torch.zeros(1, 3, dtype=dtype), kind), torch.zeros(1, 3, dtype=dtype))
    box = OBLONG.to(dtype)
    world = torch.lerp(box[0], box[1], (x + 1) / 2)
    unit = SceneBox(box, kind).to_unit(world)
    torch.testing.assert_close(unit, 0.25 + 0.5 * SceneBox(box).to_unit(world))


def check_inverse(kind: str, dtype: torch.dtype, back: str) -> None:
    """The error grows with the square of the distance: 2 - 1 / |x| keeps 1 / |x| to eps, relative to it |x| eps."""
    x = points(kind, dtype, -4, 5)
    eps, size = torch.finfo(dtype).eps, norm(x, kind).clamp(min=1)
    for box in (CUBE, OBLONG):
        sides = box[1] - box[0]
        world = (box[0] + (x.double() + 1) / 2 * sides).to(dtype)
        found = SceneBox(box.to(dtype), back).from_unit(SceneBox(box.to(dtype), kind).to_unit(world))
        error = ((found - world).double() / sides).norm(dim=-1)
        # The box's own map rounds coordinates of up to 4 half-sides, in both directions; a dozen operations each.
        assert float((error / (eps * size.double().square())).max()) < 24


@KINDS
@DTYPES
def test_back_and_forth_is_the_identity_to_rounding(kind: str, dtype: torch.dtype) -> None:
    check_inverse(kind, dtype, kind)
    other = "linf" if kind == "l2" else "l2"
    assert_detected(lambda: check_inverse(kind, dtype, other))


@KINDS
@DTYPES
def test_forth_and_back_is_the_identity_in_the_ball_of_radius_2(kind: str, dtype: torch.dtype) -> None:
    y = points(kind, dtype, -4, 0)
    y = torch.cat([y, y / norm(y, kind)[:, None] * (1 + rand(len(y), 1, seed=3).to(dtype) * 0.999)])
    # Here the map back is the benign one.
    torch.testing.assert_close(contract(expand(y, kind), kind), y, rtol=0, atol=16 * torch.finfo(dtype).eps)


@KINDS
def test_the_surface_of_the_cube_is_far_away_and_a_number(kind: str) -> None:
    surface = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 1.0]])
    found = SceneBox(CUBE, kind).from_unit(surface)
    assert not bool(found.isnan().any())
    assert found[0, 0] > 1e15
    assert found[1, 1] < -1e15
    assert found[0, 1:].tolist() == [0.0, 0.0]


SHELLS = {"inside": 0.5, "just inside": 1 - 1e-4, "on it": 1.0, "just outside": 1 + 1e-4, "outside": 3.0, "far": 1e3}


@KINDS
@pytest.mark.parametrize("shell", SHELLS)
def test_gradients_are_those_of_differences(kind: str, shell: str) -> None:
    """Also at |x| = 1, where the slope has no jump."""
    x = points(kind, torch.float64, 0, 0, n=40)
    x = x * SHELLS[shell] / norm(x, kind)[:, None]
    for box in (CUBE, OBLONG):
        scene_box = SceneBox(box.double(), kind)
        world = torch.lerp(scene_box.aabb[0], scene_box.aabb[1], (x + 1) / 2).requires_grad_()
        assert torch.autograd.gradcheck(scene_box.to_unit, world, atol=2e-5)  # a step of 1e-6 over a jump of curvature
        if SHELLS[shell] < 100:  # farther out a step of differences leaves the cube
            unit = scene_box.to_unit(world).detach().requires_grad_()
            assert torch.autograd.gradcheck(scene_box.from_unit, unit, atol=2e-5)


@KINDS
@pytest.mark.parametrize("point", [[0.0, 0.0, 0.0], [1e30, 0.0, 0.0], [1e30, -2e30, 1e30], [0.0, 1e10, -1.0]])
def test_gradients_at_the_middle_and_far_away(kind: str, point: list[float]) -> None:
    x = torch.tensor([point], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SceneBox(CUBE.double(), kind).to_unit, x)


@KINDS
@DTYPES
def test_no_gradient_is_nan(kind: str, dtype: torch.dtype) -> None:
    values = [0.0, 1.0, -1.0, 2.0, 1e15, -1e16, 1e20, 1e30, -1e38, math.inf]
    x = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * 3).requires_grad_()
    for box in (CUBE, OBLONG):
        (gradient,) = torch.autograd.grad(SceneBox(box.to(dtype), kind).to_unit(x).sum(), x)
        assert bool(gradient.isfinite().all())


def check_ndc(box: Tensor, near_share: float) -> None:
    """Against the equations of NeRF's appendix, whose cameras look along -z with y up, point by point in Python."""
    (low_x, near, low_z), (high_x, _, high_z) = box.tolist()
    for x, y, z in rand(100, 3, seed=2, low=-3, high=3).double().tolist():
        ahead = near + abs(y) * 10
        # As NeRF has them: a_x = f / (W / 2) where the picture's half is as wide as the front face, at the distance n.
        ndc_x = -near / ((high_x - low_x) / 2) * (x / -ahead)
        ndc_y = -near / ((high_z - low_z) / 2) * (z / -ahead)
        ndc_z = 1 + 2 * near_share * near / -ahead
        middle = ((low_x + high_x) / (high_x - low_x), (low_z + high_z) / (high_z - low_z))  # 0 in the paper
        expected = [(ndc_x - middle[0] + 1) / 2, (ndc_z + 1) / 2, (ndc_y - middle[1] + 1) / 2]
        unit = SceneBox(box.double(), "ndc").to_unit(torch.tensor([[x, ahead, z]], dtype=torch.float64))
        torch.testing.assert_close(unit, torch.tensor([expected], dtype=torch.float64))


FRONT = torch.tensor([[-1.5, 1.0, -1.0], [1.5, 3.0, 1.0]])


@pytest.mark.parametrize("box", [FRONT, OBLONG], ids=["symmetric", "oblong"])
def test_a_frustum_becomes_the_cube_by_the_papers_equations(box: Tensor) -> None:
    check_ndc(box, 1.0)
    assert_detected(lambda: check_ndc(box, 0.9))


@DTYPES
def test_what_a_frustum_does_not_hold_lies_outside_of_the_cube(dtype: torch.dtype) -> None:
    box = SceneBox(FRONT.to(dtype), "ndc")
    outside = [[0, 0.999, 0], [0, 0, 0], [0.1, -2, 0.1], [1.51, 1, 0], [-15.1, 10, 0], [0, 10, 10.1], [0, -math.inf, 0]]
    inside = [[0, 1, 0], [1.5, 1, -1], [-14.9, 10, 9.9], [0, 1e30, 0], [0, math.inf, 0]]
    for points_, holds in ((outside, False), (inside, True)):
        unit = box.to_unit(torch.tensor(points_, dtype=dtype))
        assert bool(unit.isfinite().all())
        assert ((unit.clamp(0, 1) == unit).all(-1) == holds).all()


@DTYPES
def test_a_frustums_map_is_undone_and_differentiable(dtype: torch.dtype) -> None:
    box, unit = SceneBox(OBLONG.to(dtype), "ndc"), rand(1000, 3, seed=5, low=0, high=0.999).to(dtype)
    # 1 - n / y keeps n / y to eps, of which at least a thousandth is left.
    torch.testing.assert_close(box.to_unit(box.from_unit(unit)), unit, rtol=0, atol=16 * torch.finfo(dtype).eps)
    assert bool(box.from_unit(torch.ones(1, 3, dtype=dtype)).isfinite().all())
    world = box.from_unit(unit[:20]).double().requires_grad_()
    assert torch.autograd.gradcheck(SceneBox(OBLONG.double(), "ndc").to_unit, world)
    values = torch.tensor([0.0, 1.0, -1.0, 1e-30, 1e15, -1e38, math.inf], dtype=dtype)
    anywhere = torch.cartesian_prod(values, values, values).requires_grad_()
    (gradient,) = torch.autograd.grad(box.to_unit(anywhere).sum(), anywhere)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", CONTRACTIONS)
def test_a_kept_affine_map_changes_nothing(kind: str) -> None:
    box, x = SceneBox(OBLONG, kind), points("l2", torch.float32, -2, 3)
    assert torch.equal(box.to_unit(x, box.affine()), box.to_unit(x))
    factor, summand = box.affine()
    torch.testing.assert_close(torch.addcmul(summand, OBLONG, factor), torch.tensor([[0.0] * 3, [1.0] * 3]))


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 5, 3)])
@pytest.mark.parametrize("kind", CONTRACTIONS)
def test_positions_have_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    box, x = SceneBox(CUBE, kind), rand(*shape, seed=0, low=-3, high=3)
    if kind == "ndc":
        box, x = SceneBox(OBLONG, kind), x.abs() + 0.1  # in front of the origin
    unit = box.to_unit(x)
    assert unit.shape == shape
    assert torch.equal(unit.view(-1, 3), box.to_unit(x.view(-1, 3)))
    torch.testing.assert_close(box.from_unit(unit), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (CUBE, "box: expected SceneBox, got Tensor"),
        (SceneBox(CUBE.double()), "box.aabb: expected dtype torch.float32, got torch.float64"),
        (SceneBox(CUBE[0]), r"box.aabb: expected shape \[2, 3\], got \[3\]"),
        (SceneBox(CUBE.flip(0)), "box.aabb: expected a minimum corner and a maximum corner above it"),
        (SceneBox(CUBE * math.nan), "box.aabb: expected a minimum corner and a maximum corner above it"),
        (SceneBox(CUBE * 3e38), "box.aabb: expected sides between 1e-38 and 1e38"),
        (SceneBox(CUBE * 1e-40), "box.aabb: expected sides between 1e-38 and 1e38"),
        (SceneBox(CUBE, "ndc"), "box.aabb: expected a minimum of y > 0 with contraction 'ndc'"),
        (SceneBox(CUBE, "L2"), "box.contraction: expected one of none, l2, linf, ndc, got 'L2'"),
    ],
)
def test_boxes_that_are_none_are_named(box: SceneBox, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_box("box", box)
    for kind in CONTRACTIONS:
        check_box("box", SceneBox(OBLONG if kind == "ndc" else CUBE, kind))


@pytest.mark.parametrize("kind", ["L2", "linff", "", None])
def test_a_contraction_that_is_misspelt_is_no_other_one(kind: str) -> None:
    box = SceneBox(CUBE, kind)
    for move in (box.to_unit, box.from_unit):
        with pytest.raises(ValueError, match="contraction: expected one of none, l2, linf, ndc, got"):
            move(torch.full((1, 3), 0.75))


@pytest.mark.parametrize("shape", [(5, 1), (2,), ()])
def test_positions_have_three_coordinates(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"positions: expected shape \[\.\.\., 3\], got"):
        SceneBox(CUBE).to_unit(torch.zeros(shape))


@pytest.mark.parametrize(("contraction", "reach"), [("none", 1.5), ("l2", 3.0), ("linf", 3.0), ("ndc", 1.5)])
def test_the_unit_cube_is_encoded_as_the_box_of_synthetic_scenes(contraction: str, reach: float) -> None:
    unit = torch.tensor([[0.0, 0.5, 1.0]])
    assert encoded_reach(contraction) == reach
    assert encodable(unit, contraction).tolist() == [[-reach, 0.0, reach]]
