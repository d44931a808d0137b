"""The synthetic scene that moves: solids on a round table that travel, turn and change their shapes."""

from __future__ import annotations

import math

import numpy as np

from lightning_nerf.data.shapes import (
    IVORY,
    NAVY,
    PALETTE,
    Field,
    Solid,
    Triple,
    box,
    capsule,
    column,
    cylinder,
    ellipsoid,
    globe,
    marble,
    plain,
    rings,
    sphere,
    spokes,
    swirl,
    table,
    torus,
    turn,
    twisted,
    untwisted,
)

_TABLE, _LANTERN = -0.57, 0.5  # heights of the table's top and of the lantern
_SWING = 1.05  # radians by which the four large solids travel around the post


def moving_solids(seed: int, time: float) -> list[Solid]:
    """The scene at a time in [0, 1]; each place, angle and size is a smooth function of it.

    Four large solids travel on the table around a post: a ball that is squeezed flat and tall, a box that is twisted one
    way and then the other, a wheel that turns, a ball that tumbles and hops. The lantern on the post turns, and a hoop
    around it turns over. A small ball flies the other way around, three times as fast as the large solids. The table and
    the post stand still.

    ``seed`` decides where each solid begins, and the colors. All fits in a sphere of radius 1.34 around the origin.
    """
    random = np.random.default_rng(seed)
    corners = random.permutation(4)
    colors = [PALETTE[i] for i in random.permutation(len(PALETTE))]
    wave = math.sin(2 * math.pi * time)

    begin = [math.radians(90 * corner + 35) for corner in corners]
    travelled = [angle + _SWING * time for angle in begin]

    def place(i: int, height: float) -> Triple:
        return _around(travelled[i], 0.64, _TABLE + height)

    radii = (0.33 * (1 - 0.15 * wave), 0.33 * (1 - 0.15 * wave), 0.33 * (1 + 0.25 * wave))
    twist = 1.5 * math.cos(math.pi * time)
    hop = 0.4 * math.sin(math.pi * time) ** 2
    return [
        Solid(cylinder(1.1, 0.08), table, 1.11, (0, 0, _TABLE - 0.08), shine=0.15),
        Solid(capsule(0.4, 0.035), rings(IVORY, NAVY), 0.44, (0, 0, _TABLE + 0.42)),
        Solid(
            ellipsoid(*radii),
            _squeezed(swirl(colors[0], IVORY), radii, 0.38),
            max(radii) + 0.01,
            place(0, radii[2]),
            turn(travelled[0]),
        ),
        Solid(
            twisted(box(0.24, 0.24, 0.36, 0.05), twist, 0.5),
            untwisted(marble(colors[1], IVORY), twist),
            0.5,
            place(1, 0.36),
            turn(travelled[1]),
            convex=False,
        ),
        Solid(
            torus(0.27, 0.1),
            spokes(colors[2], colors[3]),
            0.38,
            place(2, 0.37),
            turn(travelled[2] + 1.5 * time, math.pi / 2),
            shine=0.4,
            convex=False,
        ),
        Solid(sphere(0.27), globe(colors[4], IVORY), 0.28, place(3, 0.27 + hop), turn(travelled[3], 2.0 * time), shine=0.4),
        Solid(sphere(0.22), swirl(colors[5], IVORY), 0.23, (0, 0, _LANTERN), turn(-1.5 * time), shine=0.4),
        Solid(torus(0.36, 0.025), plain(NAVY), 0.39, (0, 0, _LANTERN), turn(0.4, 0.2 + 1.2 * time), convex=False),
        Solid(sphere(0.12), plain(colors[2]), 0.13, _around(begin[0] - 2.6 * time, 0.85, 0.55), shine=0.5),
    ]


def _around(angle: float, radius: float, height: float) -> Triple:
    return radius * math.cos(angle), radius * math.sin(angle), height


def _squeezed(color: Field, radii: Triple, radius: float) -> Field:
    """The texture of a ball of ``radius``, on an ellipsoid of ``radii``."""
    scale = np.float32(radius) / column(radii)
    return lambda p: color(p * scale)
