"""The solids of the synthetic scene: signed distance functions with textures, on a round table.

Points are float32 arrays [3, n]. Distances are exact or too small, never too large, so a ray may advance by them (Hart,
"Sphere tracing: a geometric method for the antialiased ray tracing of implicit surfaces", The Visual Computer 1996).
NumPy, not torch: operations on a few thousand numbers are faster in it, and threads of it do not contend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]
Triple = tuple[float, float, float]


class Solid(NamedTuple):
    """A textured solid; its functions take points in its own frame."""

    distance: Field  # [3, n] -> [n], signed, negative inside
    color: Field  # [3, n] -> [3, n] in [0, 1]
    radius: float  # of a sphere around the center that holds it
    center: Triple
    rotation: np.ndarray | None = None  # [3, 3] own frame to world; None: the identity
    shine: float = 0.3  # strength of its highlights
    sharpness: float = 24.0  # exponent of its highlights
    convex: bool = True  # throws no shadow on itself

    def local(self, world: np.ndarray) -> np.ndarray:
        """World points [3, n] in the solid's frame."""
        return self.unturned(world - column(self.center))

    def unturned(self, world: np.ndarray) -> np.ndarray:
        """World vectors [3, n] in the solid's frame."""
        return world if self.rotation is None else _rotate(self.rotation.T, world)

    def turned(self, local: np.ndarray) -> np.ndarray:
        """The solid's vectors [3, n] in the world's frame."""
        return local if self.rotation is None else _rotate(self.rotation, local)


def solids(seed: int) -> list[Solid]:
    """The scene: four large solids, a lantern on a post, thin hoops and rods, two balls, on a round table.

    ``seed`` decides which solid stands where, and the colors. All fits in a sphere of radius 1.34 around the origin, which
    is what a camera with NeRF-Synthetic's distance (4) and field of view (0.69) sees.
    """
    random = np.random.default_rng(seed)
    corners = random.permutation(4)
    colors = [_PALETTE[i] for i in random.permutation(len(_PALETTE))]

    def corner(i: int, height: float) -> Triple:
        angle = math.radians(90 * corners[i] + 35)
        return 0.64 * math.cos(angle), 0.64 * math.sin(angle), _TABLE + height

    rim = [(0.96 * math.cos(a), 0.96 * math.sin(a), _TABLE) for a in (math.radians(80 + 90 * i) for i in range(4))]
    top = [(0.5 * x, 0.5 * y, _LANTERN - 0.05) for x, y, _ in rim]
    return [
        Solid(_cylinder(1.1, 0.08), _table, 1.11, (0, 0, _TABLE - 0.08), shine=0.15),
        Solid(_sphere(0.38), _swirl(colors[0], _IVORY), 0.39, corner(0, 0.38), _turn(0.5, 0.4), 0.5, 32),
        Solid(_box(0.3, 0.3, 0.33, 0.05), _marble(colors[1], _IVORY), 0.52, corner(1, 0.33), _turn(0.6)),
        Solid(
            _torus(0.28, 0.11),
            _spokes(colors[2], colors[3]),
            0.4,
            corner(2, 0.39),
            _turn(2.4, 1.57),
            0.5,
            32,
            convex=False,
        ),
        Solid(_capsule(0.36, 0.18), _rings(colors[4], _NAVY), 0.55, corner(3, 0.54), shine=0.4),
        Solid(_capsule(0.55, 0.035), _rings(_IVORY, _NAVY), 0.59, (0, 0, _TABLE + 0.5)),
        Solid(_sphere(0.27), _globe(colors[5], _IVORY), 0.28, (0, 0, _LANTERN), _turn(0.3, 0.5), 0.6, 40),
        Solid(_torus(0.48, 0.025), _plain(_NAVY), 0.51, (0, 0, _LANTERN - 0.05), shine=0.5, convex=False),
        Solid(_torus(0.38, 0.022), _plain(colors[0]), 0.41, (0, 0, _LANTERN), _turn(0.4, 0.6), shine=0.5, convex=False),
        *(_rod(a, b, 0.024, colors[1]) for a, b in zip(rim, top, strict=True)),
        Solid(_sphere(0.13), _plain(colors[3]), 0.14, (0.03, -0.92, _TABLE + 0.13), shine=0.6, sharpness=32),
        Solid(_sphere(0.1), _plain(colors[4]), 0.11, (-0.92, -0.12, _TABLE + 0.1), shine=0.6, sharpness=32),
    ]


_TABLE, _LANTERN = -0.57, 0.72  # heights of the table's top and of the lantern
_IVORY, _NAVY = (0.93, 0.90, 0.82), (0.13, 0.17, 0.30)
_PALETTE = (
    (0.85, 0.22, 0.18),  # vermilion
    (0.10, 0.52, 0.55),  # teal
    (0.93, 0.66, 0.16),  # amber
    (0.25, 0.33, 0.68),  # blue
    (0.40, 0.62, 0.27),  # leaf
    (0.74, 0.33, 0.52),  # rose
)


def column(values: Triple) -> np.ndarray:
    """Three numbers as [3, 1] float32."""
    return np.array(values, np.float32)[:, None]


def length(*components: np.ndarray) -> np.ndarray:
    """Of vectors, given by components of any shape."""
    return np.sqrt(sum(c * c for c in components))


def _rotate(rotation: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Not matmul: a BLAS would start threads of its own."""
    return np.stack([row[0] * p[0] + row[1] * p[1] + row[2] * p[2] for row in rotation])


# Distances.


def _sphere(radius: float) -> Field:
    return lambda p: length(*p) - radius


def _box(x: float, y: float, z: float, rounding: float) -> Field:
    """Half sizes, edges rounded inside them."""

    def distance(p: np.ndarray) -> np.ndarray:
        qx, qy, qz = (abs(c) - (half - rounding) for c, half in zip(p, (x, y, z), strict=True))
        outside = length(np.maximum(qx, 0), np.maximum(qy, 0), np.maximum(qz, 0))
        return outside + np.minimum(np.maximum(np.maximum(qx, qy), qz), 0) - rounding

    return distance


def _cylinder(radius: float, half_height: float, rounding: float = 0.02) -> Field:
    def distance(p: np.ndarray) -> np.ndarray:
        across, along = length(p[0], p[1]) - (radius - rounding), abs(p[2]) - (half_height - rounding)
        outside = length(np.maximum(across, 0), np.maximum(along, 0))
        return outside + np.minimum(np.maximum(across, along), 0) - rounding

    return distance


def _torus(radius: float, tube: float) -> Field:
    return lambda p: length(length(p[0], p[1]) - radius, p[2]) - tube


def _capsule(half_length: float, radius: float) -> Field:
    """Along z; ``half_length`` without the round ends."""
    return lambda p: length(p[0], p[1], np.maximum(abs(p[2]) - half_length, 0)) - radius


def _rod(a: Triple, b: Triple, radius: float, color: Triple) -> Solid:
    start, end = np.array(a), np.array(b)
    half = float(np.linalg.norm(end - start)) / 2
    z = (end - start) / (2 * half)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z], 1).astype(np.float32)
    x0, y0, z0 = ((start + end) / 2).tolist()
    return Solid(_capsule(half, radius), _plain(color), half + radius + 0.01, (x0, y0, z0), rotation, shine=0.4)


def _turn(about_z: float, about_x: float = 0.0) -> np.ndarray:
    """Rotation about x, then about z, in radians."""
    c, s, k, n = math.cos(about_z), math.sin(about_z), math.cos(about_x), math.sin(about_x)
    return np.array([[c, -s * k, s * n], [s, c * k, -c * n], [0.0, n, k]], np.float32)


# Textures: a few cycles over each solid, so that a picture of 100 x 100 pixels resolves them.


def _plain(color: Triple) -> Field:
    return lambda p: np.broadcast_to(column(color), p.shape)


def _mix(a: Triple, b: Triple, weight: np.ndarray) -> np.ndarray:
    return column(a) + (column(b) - column(a)) * weight


def _stripes(a: Triple, b: Triple, wave: np.ndarray) -> np.ndarray:
    """a where the wave (of amplitude 1) is negative, b where it is positive, with edges that are not quite sharp."""
    return _mix(a, b, np.clip(0.5 + 3 * wave, 0, 1))


def _swirl(a: Triple, b: Triple) -> Field:
    return lambda p: _stripes(a, b, np.sin(4 * np.arctan2(p[1], p[0]) + 7 * p[2]))


def _marble(a: Triple, b: Triple) -> Field:
    def color(p: np.ndarray) -> np.ndarray:
        bent = 6 * p[0] + 5 * p[2] + 1.6 * np.sin(5 * p[1] + 2 * np.sin(6 * p[2])) + np.sin(9 * p[0] - 7 * p[1])
        return _mix(a, b, (0.5 + 0.5 * np.sin(bent)) ** 2)

    return color


def _spokes(a: Triple, b: Triple) -> Field:
    return lambda p: _stripes(a, b, np.sin(9 * np.arctan2(p[1], p[0])))


def _rings(a: Triple, b: Triple) -> Field:
    return lambda p: _stripes(a, b, np.sin(18 * p[2] + 0.7))


def _globe(a: Triple, b: Triple) -> Field:
    return lambda p: _stripes(a, b, np.sin(4 * np.arctan2(p[1], p[0])) * np.sin(15 * p[2]))


def _table(p: np.ndarray) -> np.ndarray:
    """A checker on top, within a plain border; wood below."""
    checker = _stripes(_IVORY, (0.42, 0.50, 0.58), np.sin(11 * p[0]) * np.sin(11 * p[1]))
    grain = 0.3 * np.sin(14 * p[0] + 2 * np.sin(4 * p[1]))
    wood = _stripes((0.45, 0.29, 0.19), (0.58, 0.40, 0.26), grain)
    return np.where((length(p[0], p[1]) < 1.02) & (p[2] > 0), checker, wood)
