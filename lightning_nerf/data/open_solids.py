"""The synthetic scene without a border: the solids on their table, ground that goes on, things far away, a sky."""

from __future__ import annotations

import math

import numpy as np

from lightning_nerf.data.shapes import (
    IVORY,
    NAVY,
    PALETTE,
    Field,
    Solid,
    box,
    capsule,
    column,
    cylinder,
    globe,
    length,
    marble,
    mix,
    rings,
    sphere,
    spokes,
    stripes,
    swirl,
    torus,
    turn,
)
from lightning_nerf.data.solids import solids

GROUND, SKY = -0.75, 60.0  # height of the ground, radius of the sky
_NEAREST, _FARTHEST = 5.5, 30.0  # of the things around, from the origin; cameras stay within 3.6


def open_solids(seed: int) -> list[Solid]:
    """The solids of :func:`~lightning_nerf.data.solids.solids`, 18 things around them in all directions, ground and sky.

    A thing twice as far away is twice as large, and so are the ground's tiles: at every distance there is as much to see.
    """
    random = np.random.default_rng([seed, 1])
    colors = [PALETTE[i] for i in random.permutation(len(PALETTE))]
    around: list[Solid] = []
    for i in range(18):
        away = _NEAREST * (_FARTHEST / _NEAREST) ** ((i * 0.618034) % 1)
        angle = 2 * math.pi * (i + 0.6 * random.random()) / 18
        x, y, size = away * math.cos(angle), away * math.sin(angle), 0.14 * away
        color, other = colors[i % len(colors)], (IVORY, NAVY)[i % 2]
        around.append(_thing(i % 5, x, y, size, color, other, turn(float(random.uniform(0, 3)))))
    ground = Solid(lambda p: p[2], _tiles, SKY, (0, 0, GROUND), shine=0.0, casts=False)
    sky = Solid(lambda p: np.float32(SKY) - length(*p), _sky, 1.02 * SKY, (0, 0, 0), casts=False, emits=True)
    return [*solids(seed), *around, ground, sky]


def _thing(
    kind: int,
    x: float,
    y: float,
    size: float,
    color: tuple[float, float, float],
    other: tuple[float, float, float],
    rotation: np.ndarray,
) -> Solid:
    """A ball, a block, a pillar, a tower or a ring of a size, standing on the ground."""

    def standing(distance: Field, texture: Field, half_height: float, radius: float, is_convex: bool = True) -> Solid:
        center = (x, y, GROUND + half_height)
        return Solid(distance, _scaled(texture, size), radius, center, rotation, shine=0.1, convex=is_convex)

    if kind == 0:
        return standing(sphere(size), swirl(color, other), size, 1.02 * size)
    if kind == 1:
        return standing(box(0.8 * size, 0.6 * size, 0.9 * size, 0.1 * size), marble(color, other), 0.9 * size, 1.4 * size)
    if kind == 2:
        return standing(cylinder(0.4 * size, 1.6 * size), rings(color, other), 1.6 * size, 1.7 * size)
    if kind == 3:
        return standing(capsule(1.6 * size, 0.5 * size), globe(color, other), 2.1 * size, 2.2 * size)
    upright = rotation @ turn(0.0, math.pi / 2)
    ring = standing(torus(0.9 * size, 0.25 * size), spokes(color, other), 1.15 * size, 1.2 * size, is_convex=False)
    return ring._replace(rotation=upright)


def _scaled(texture: Field, size: float) -> Field:
    """A texture that was made for a solid of size 0.4, on one of another size."""
    return lambda p: texture(p * np.float32(0.4 / size))


def _tiles(p: np.ndarray) -> np.ndarray:
    """Earthy tiles whose size grows with the distance."""
    away, angle = np.log(np.maximum(length(p[0], p[1]), 0.05)), np.arctan2(p[1], p[0])
    tiles = stripes((0.52, 0.55, 0.38), (0.66, 0.60, 0.47), np.sin(9 * away) * np.sin(10 * angle))
    return tiles * (0.85 + 0.15 * np.sin(3 * away + 2 * angle))


def _sky(p: np.ndarray) -> np.ndarray:
    """Pale at the horizon, blue above, with ridges of hills and a few bands of cloud."""
    height, angle = p[2] / length(*p), np.arctan2(p[1], p[0])
    air = mix((0.86, 0.90, 0.93), (0.25, 0.45, 0.80), np.clip(1.6 * height, 0, 1))
    cloud = np.clip(np.sin(5 * angle + 3 * np.sin(9 * height)) * np.sin(24 * height + 2 * np.sin(2 * angle)), 0, 1)
    air = air + (column((0.97, 0.97, 0.97)) - air) * 0.6 * cloud
    ridge = 0.06 + 0.035 * np.sin(3 * angle + 1) + 0.02 * np.sin(7 * angle) + 0.01 * np.sin(17 * angle)
    hills = mix((0.33, 0.42, 0.40), (0.55, 0.63, 0.68), np.clip(height / 0.12, 0, 1))
    return air + (hills - air) * np.clip(0.5 + 120 * (ridge - height), 0, 1)
