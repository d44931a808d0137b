"""The synthetic scene that stands still: textured solids on a round table."""

from __future__ import annotations

import math

import numpy as np

from lightning_nerf.data.shapes import (
    IVORY,
    NAVY,
    PALETTE,
    Solid,
    Triple,
    box,
    capsule,
    cylinder,
    globe,
    marble,
    plain,
    rings,
    rod,
    sphere,
    spokes,
    swirl,
    table,
    torus,
    turn,
)

TABLE, LANTERN = -0.57, 0.72  # heights of the table's top and of the lantern


def solids(seed: int) -> list[Solid]:
    """The scene: four large solids, a lantern on a post, thin hoops and rods, two balls, on a round table.

    ``seed`` decides which solid stands where, and the colors. All fits in a sphere of radius 1.34 around the origin, which
    is what a camera with NeRF-Synthetic's distance (4) and field of view (0.69) sees.
    """
    random = np.random.default_rng(seed)
    corners = random.permutation(4)
    colors = [PALETTE[i] for i in random.permutation(len(PALETTE))]

    def corner(i: int, height: float) -> Triple:
        angle = math.radians(90 * corners[i] + 35)
        return 0.64 * math.cos(angle), 0.64 * math.sin(angle), TABLE + height

    rim = [(0.96 * math.cos(a), 0.96 * math.sin(a), TABLE) for a in (math.radians(80 + 90 * i) for i in range(4))]
    top = [(0.5 * x, 0.5 * y, LANTERN - 0.05) for x, y, _ in rim]
    return [
        Solid(cylinder(1.1, 0.08), table, 1.11, (0, 0, TABLE - 0.08), shine=0.15),
        Solid(sphere(0.38), swirl(colors[0], IVORY), 0.39, corner(0, 0.38), turn(0.5, 0.4), 0.5, 32),
        Solid(box(0.3, 0.3, 0.33, 0.05), marble(colors[1], IVORY), 0.52, corner(1, 0.33), turn(0.6)),
        Solid(
            torus(0.28, 0.11),
            spokes(colors[2], colors[3]),
            0.4,
            corner(2, 0.39),
            turn(2.4, 1.57),
            0.5,
            32,
            convex=False,
        ),
        Solid(capsule(0.36, 0.18), rings(colors[4], NAVY), 0.55, corner(3, 0.54), shine=0.4),
        Solid(capsule(0.55, 0.035), rings(IVORY, NAVY), 0.59, (0, 0, TABLE + 0.5)),
        Solid(sphere(0.27), globe(colors[5], IVORY), 0.28, (0, 0, LANTERN), turn(0.3, 0.5), 0.6, 40),
        Solid(torus(0.48, 0.025), plain(NAVY), 0.51, (0, 0, LANTERN - 0.05), shine=0.5, convex=False),
        Solid(torus(0.38, 0.022), plain(colors[0]), 0.41, (0, 0, LANTERN), turn(0.4, 0.6), shine=0.5, convex=False),
        *(rod(a, b, 0.024, colors[1]) for a, b in zip(rim, top, strict=True)),
        Solid(sphere(0.13), plain(colors[3]), 0.14, (0.03, -0.92, TABLE + 0.13), shine=0.6, sharpness=32),
        Solid(sphere(0.1), plain(colors[4]), 0.11, (-0.92, -0.12, TABLE + 0.1), shine=0.6, sharpness=32),
    ]
