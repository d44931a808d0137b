"""Solids: signed distance functions with textures.

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
    casts: bool = True  # throws shadows on others
    emits: bool = False  # shines by itself: its color is what is seen, whatever light falls on it

    def local(self, world: np.ndarray) -> np.ndarray:
        """World points [3, n] in the solid's frame."""
        return self.unturned(world - column(self.center))

    def unturned(self, world: np.ndarray) -> np.ndarray:
        """World vectors [3, n] in the solid's frame."""
        return world if self.rotation is None else rotate(self.rotation.T, world)

    def turned(self, local: np.ndarray) -> np.ndarray:
        """The solid's vectors [3, n] in the world's frame."""
        return local if self.rotation is None else rotate(self.rotation, local)


IVORY, NAVY = (0.93, 0.90, 0.82), (0.13, 0.17, 0.30)
PALETTE = (
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


def rotate(rotation: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Not matmul: a BLAS would start threads of its own."""
    return np.stack([row[0] * p[0] + row[1] * p[1] + row[2] * p[2] for row in rotation])


# Distances.


def sphere(radius: float) -> Field:
    """A ball."""
    return lambda p: length(*p) - radius


def box(x: float, y: float, z: float, rounding: float) -> Field:
    """Half sizes, edges rounded inside them."""

    def distance(p: np.ndarray) -> np.ndarray:
        qx, qy, qz = (abs(c) - (half - rounding) for c, half in zip(p, (x, y, z), strict=True))
        outside = length(np.maximum(qx, 0), np.maximum(qy, 0), np.maximum(qz, 0))
        return outside + np.minimum(np.maximum(np.maximum(qx, qy), qz), 0) - rounding

    return distance


def cylinder(radius: float, half_height: float, rounding: float = 0.02) -> Field:
    """Along z, edges rounded inside it."""

    def distance(p: np.ndarray) -> np.ndarray:
        across, along = length(p[0], p[1]) - (radius - rounding), abs(p[2]) - (half_height - rounding)
        outside = length(np.maximum(across, 0), np.maximum(along, 0))
        return outside + np.minimum(np.maximum(across, along), 0) - rounding

    return distance


def torus(radius: float, tube: float) -> Field:
    """A ring in the plane z = 0."""
    return lambda p: length(length(p[0], p[1]) - radius, p[2]) - tube


def ellipsoid(x: float, y: float, z: float) -> Field:
    """Radii along the axes. The distance is a bound, which is a share of the exact one near the surface."""
    radii, least, most = column((x, y, z)), np.float32(min(x, y, z)), np.float32(max(x, y, z))
    return lambda p: np.maximum((length(*(p / radii)) - 1) * least, length(*p) - most)


def twisted(distance: Field, angle: float, radius: float) -> Field:
    """A solid within ``radius`` of its center, twisted about z by ``angle`` radians per unit of z.

    Twisting stretches space at most by ``stretch`` where it is asked for, up to 1.25 radii away: distances are divided by
    that. Further away the sphere around the solid is near enough.
    """
    reach = np.float32(1.25 * radius)
    a = abs(angle) * float(reach) / 2
    stretch = np.float32(a + math.sqrt(1 + a * a))  # the largest singular value of a shear by 2 a
    straight = untwisted(lambda p: distance(p) / stretch, angle)

    def bound(p: np.ndarray) -> np.ndarray:
        away = length(*p)
        return np.where(away < reach, straight(p), away - np.float32(radius))

    return bound


def untwisted(field: Field, angle: float) -> Field:
    """A distance or a texture that follows its solid when that is twisted."""

    def values(p: np.ndarray) -> np.ndarray:
        turn = -np.float32(angle) * p[2]
        c, s = np.cos(turn), np.sin(turn)
        return field(np.stack([c * p[0] - s * p[1], s * p[0] + c * p[1], p[2]]))

    return values


def capsule(half_length: float, radius: float) -> Field:
    """Along z; ``half_length`` without the round ends."""
    return lambda p: length(p[0], p[1], np.maximum(abs(p[2]) - half_length, 0)) - radius


def rod(a: Triple, b: Triple, radius: float, color: Triple) -> Solid:
    """A thin capsule between two points of the world."""
    start, end = np.array(a), np.array(b)
    half = float(np.linalg.norm(end - start)) / 2
    z = (end - start) / (2 * half)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z], 1).astype(np.float32)
    x0, y0, z0 = ((start + end) / 2).tolist()
    return Solid(capsule(half, radius), plain(color), half + radius + 0.01, (x0, y0, z0), rotation, shine=0.4)


def turn(about_z: float, about_x: float = 0.0) -> np.ndarray:
    """Rotation about x, then about z, in radians."""
    c, s, k, n = math.cos(about_z), math.sin(about_z), math.cos(about_x), math.sin(about_x)
    return np.array([[c, -s * k, s * n], [s, c * k, -c * n], [0.0, n, k]], np.float32)


# Textures: a few cycles over each solid, so that a picture of 100 x 100 pixels resolves them.


def plain(color: Triple) -> Field:
    """One color."""
    return lambda p: np.broadcast_to(column(color), p.shape)


def mix(a: Triple, b: Triple, weight: np.ndarray) -> np.ndarray:
    """From a, where the weight is 0, to b, where it is 1."""
    return column(a) + (column(b) - column(a)) * weight


def stripes(a: Triple, b: Triple, wave: np.ndarray) -> np.ndarray:
    """a where the wave (of amplitude 1) is negative, b where it is positive, with edges that are not quite sharp."""
    return mix(a, b, np.clip(0.5 + 3 * wave, 0, 1))


def swirl(a: Triple, b: Triple) -> Field:
    """Stripes that wind around z."""
    return lambda p: stripes(a, b, np.sin(4 * np.arctan2(p[1], p[0]) + 7 * p[2]))


def marble(a: Triple, b: Triple) -> Field:
    """Bent veins."""

    def color(p: np.ndarray) -> np.ndarray:
        bent = 6 * p[0] + 5 * p[2] + 1.6 * np.sin(5 * p[1] + 2 * np.sin(6 * p[2])) + np.sin(9 * p[0] - 7 * p[1])
        return mix(a, b, (0.5 + 0.5 * np.sin(bent)) ** 2)

    return color


def spokes(a: Triple, b: Triple) -> Field:
    """Sectors around z."""
    return lambda p: stripes(a, b, np.sin(9 * np.arctan2(p[1], p[0])))


def rings(a: Triple, b: Triple) -> Field:
    """Stripes across z."""
    return lambda p: stripes(a, b, np.sin(18 * p[2] + 0.7))


def globe(a: Triple, b: Triple) -> Field:
    """A checker of longitude and height."""
    return lambda p: stripes(a, b, np.sin(4 * np.arctan2(p[1], p[0])) * np.sin(15 * p[2]))


def table(p: np.ndarray) -> np.ndarray:
    """A checker on top, within a plain border; wood below."""
    checker = stripes(IVORY, (0.42, 0.50, 0.58), np.sin(11 * p[0]) * np.sin(11 * p[1]))
    grain = 0.3 * np.sin(14 * p[0] + 2 * np.sin(4 * p[1]))
    wood = stripes((0.45, 0.29, 0.19), (0.58, 0.40, 0.26), grain)
    return np.where((length(p[0], p[1]) < 1.02) & (p[2] > 0), checker, wood)
