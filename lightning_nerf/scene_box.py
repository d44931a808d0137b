"""The region of the scene, and the one map from space to the unit cube."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_instance, check_tensor

CONTRACTIONS = ("none", "l2", "linf", "ndc")
BALLS = ("l2", "linf")  # those that have all of space in the unit cube
HALF_SIDE = 1.5  # of the box, as frequencies encode positions: the box of the NeRF-Synthetic scenes
_FARTHEST = 1e15  # half-sides; beyond it a square overflows float32
_NEAREST = 1e-6  # of the distance of a frustum's front face: what lies nearer, or behind, is taken to lie there


class SceneBox(NamedTuple):
    """The box that holds the scene, and how space outside of it is treated.

    With contraction "none" the box becomes the unit cube, and space outside lies outside of the cube. With "l2" or "linf"
    all of space fits into the cube: with x in half-sides from the middle of the box and |x| the Euclidean or the maximum
    norm,

        contract(x) = x                              for |x| <= 1
        contract(x) = (2 - 1 / |x|) x / |x|          for |x| > 1

    and the ball (or cube) of radius 2 becomes the unit cube.

    With "ndc", for cameras near the origin that look along +y, normalized device coordinates: the frustum from the origin
    through the box's front face, on the plane y = n with n > 0, becomes the unit cube. Its far end is infinitely far away:

        ndc(x, y, z) = (n x / y, 1 - n / y, n z / y), the first and the last scaled as the front face is

    What lies beside the frustum, or nearer than the front face, lies outside of the cube. Where the box ends behind plays
    no part in the map.

    Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Mip-NeRF 360", CVPR 2022, equation 10; Mildenhall et al.,
    "NeRF", ECCV 2020, appendix C.

    >>> import torch
    >>> from lightning_nerf import SceneBox
    >>> box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]), "linf")
    >>> box.to_unit(torch.tensor([[0.0, 1.0, -4.0]]))
    tensor([[0.5000, 0.6094, 0.0625]])
    """

    aabb: Tensor  # [2, 3] float32, minimum and maximum corner, world units
    contraction: str = "none"

    def unit_length(self) -> float:
        """A third of the longest side, in world units: 1 for the box [-1.5, 1.5]^3. Waits for a device.

        Lengths that are not given, and the density of a fresh field, are measured in it: then the unit in which a scene's
        cameras are given does not matter.
        """
        return float((self.aabb[1] - self.aabb[0]).max()) / 3

    def affine(self) -> Tensor:
        """[2, 3], factor and summand that map the box to the unit cube, without contraction."""
        scale = 1 / (self.aabb[1] - self.aabb[0])
        return torch.stack([scale, -self.aabb[0] * scale])

    def to_unit(self, positions: Tensor, affine: Tensor | None = None) -> Tensor:
        """World positions [..., 3] in the unit cube; differentiable. ``affine``: of :meth:`affine`, where a caller keeps
        it. In a box without volume, or too small or too large for float32, NaN; see :func:`check_box`.
        """
        if positions.shape[-1:] != (3,):  # one coordinate would be taken for all three
            raise BadArgument(f"positions: expected shape [..., 3], got {list(positions.shape)}")
        factor, summand = self.affine() if affine is None else affine
        if self.contraction == "ndc":
            front = self.aabb[0, 1]
            shrink = front / positions[..., 1:2].clamp(max=_FARTHEST).maximum(_NEAREST * front)
            across = torch.addcmul(summand, positions.clamp(-_FARTHEST, _FARTHEST) * shrink, factor)
            return torch.cat([across[..., :1], 1 - shrink, across[..., 2:]], -1)
        return contract_unit(torch.addcmul(summand, positions, factor), self.contraction)

    @torch.no_grad()
    def unit_scale(self, positions: Tensor, affine: Tensor | None = None) -> Tensor:
        """How long a short length at world positions [..., 3] is in the unit cube, per unit of world length: [...].

        The mean over directions in this sense: the cube root of the determinant of the Jacobian of :meth:`to_unit`. Not
        differentiable.

        Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Zip-NeRF", ICCV 2023, supplement.
        """
        factor, summand = self.affine() if affine is None else affine
        if self.contraction == "ndc":
            front = self.aabb[0, 1]
            shrink = front / positions[..., 1].clamp(max=_FARTHEST).maximum(_NEAREST * front)
            return (factor[0] * factor[2] / front) ** (1 / 3) * shrink ** (4 / 3)
        plain = factor.prod() ** (1 / 3)
        if self.contraction == "none":
            return plain.expand(positions.shape[:-1])
        x = 2 * torch.addcmul(summand, positions, factor) - 1
        norm = _norm(x.clamp(-_FARTHEST, _FARTHEST), self.contraction)[..., 0].clamp(min=1)
        # Across the ray from the middle (2 - 1 / |x|) / |x|, twice, and along it 1 / |x|^2.
        return 0.5 * plain * ((2 - 1 / norm) / norm.square()) ** (2 / 3)

    def from_unit(self, unit: Tensor) -> Tensor:
        """The inverse of :meth:`to_unit`; differentiable. The surface of a contracted cube is infinitely far away."""
        if self.contraction == "ndc":
            shrink = (1 - unit[..., 1:2]).clamp(min=1 / _FARTHEST)
            across = torch.lerp(self.aabb[0], self.aabb[1], unit) / shrink
            return torch.cat([across[..., :1], self.aabb[0, 1] / shrink, across[..., 2:]], -1)
        if self.contraction != "none":
            unit = 0.5 * expand(4 * unit - 2, self.contraction) + 0.5
        return torch.lerp(self.aabb[0], self.aabb[1], unit)


def encoded_reach(contraction: str) -> float:
    """Where the unit cube ends in positions as frequencies encode them: at 1.5, with "l2" or "linf" at 3."""
    return 2 * HALF_SIDE if contraction in BALLS else HALF_SIDE


def encodable(unit: Tensor, contraction: str) -> Tensor:
    """Positions of the unit cube as frequencies encode them: it goes from minus :func:`encoded_reach` to plus that."""
    reach = encoded_reach(contraction)
    return 2 * reach * unit - reach


def contract_unit(unit: Tensor, contraction: str) -> Tensor:
    """Positions [..., 3] in which the box is the unit cube, as those in which with "l2" or "linf" all of space is."""
    return unit if contraction == "none" else 0.25 * contract(2 * unit - 1, contraction) + 0.5


def contract(x: Tensor, contraction: str) -> Tensor:
    """Points [..., 3] in half-sides from the middle of the box, moved into the ball of radius 2, see :class:`SceneBox`."""
    _check_ball(contraction)
    x = x.clamp(-_FARTHEST, _FARTHEST)
    norm = _norm(x, contraction).clamp(min=1)  # the clamp has no gradient below 1: the inside is the identity
    return x * ((2 - 1 / norm) / norm)


def expand(y: Tensor, contraction: str) -> Tensor:
    """The inverse of :func:`contract`."""
    _check_ball(contraction)
    norm = _norm(y, contraction).clamp(1, 2 - 1 / _FARTHEST)
    return y / (norm * (2 - norm)).clamp(min=torch.finfo(y.dtype).tiny)


def check_contraction(name: str, contraction: str) -> None:
    """One of :data:`CONTRACTIONS`."""
    if contraction not in CONTRACTIONS:
        raise BadArgument(f"{name}: expected one of {', '.join(CONTRACTIONS)}, got {contraction!r}")


def check_box(name: str, box: SceneBox) -> None:
    """Two finite corners, the minimum below the maximum, and one of :data:`CONTRACTIONS`."""
    check_instance(name, box, SceneBox)
    check_tensor(f"{name}.aabb", box.aabb, (2, 3), torch.float32)
    check_corners(f"{name}.aabb", box.aabb)
    check_contraction(f"{name}.contraction", box.contraction)
    check_front(f"{name}.aabb", box)


def check_front(name: str, box: SceneBox) -> None:
    """With contraction "ndc" the box has to lie in front of the cameras."""
    if box.contraction == "ndc" and not float(box.aabb[0, 1]) > 0:
        raise BadArgument(
            f"{name}: expected a minimum of y > 0 with contraction 'ndc', whose cameras look from the origin along y, got "
            f"{box.aabb.tolist()}; a capture of LLFF or COLMAP is turned so where no aabb is given"
        )


def check_corners(name: str, corners: Tensor) -> None:
    """Corners [2, 3], finite, the minimum below the maximum, with sides that float32 holds, and whose inverses it does."""
    sides = (corners[1] - corners[0]).float()
    if not bool(corners.isfinite().all()) or not bool((corners[0] < corners[1]).all()):
        raise BadArgument(f"{name}: expected a minimum corner and a maximum corner above it, got {corners.tolist()}")
    if not bool(sides.isfinite().all()) or not bool((1 / sides).isfinite().all()):
        raise BadArgument(f"{name}: expected sides between 1e-38 and 1e38, got {corners.tolist()}")


def _check_ball(contraction: str) -> None:
    check_contraction("contraction", contraction)
    if contraction not in BALLS:
        raise BadArgument(f"contraction: expected one of {', '.join(BALLS)}, got {contraction!r}")


def _norm(x: Tensor, contraction: str) -> Tensor:
    if contraction == "linf":
        return x.abs().amax(-1, keepdim=True)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
