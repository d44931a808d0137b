"""A small ray tracer: the synthetic scenes seen along given rays, without noise."""

from __future__ import annotations

import math

import numpy as np

from lightning_nerf.data.images import shrink
from lightning_nerf.data.moving_solids import moving_solids
from lightning_nerf.data.shapes import Solid, column, length
from lightning_nerf.data.solids import solids

_HIT = np.float32(2e-4)  # a ray this close to a surface has met it; pixels of an 800 x 800 picture are 3.6e-3 wide
_STEPS = 96  # rays that graze a flat surface and have not met it by then miss it; other scenes allow more
_STEPS_PATIENT = 400  # not for the scene that stands still, whose pictures would then differ from those in caches
_LIGHT, _FILL = (0.3, -0.36, 0.883), (-0.7, 0.6, 0.38)  # unit vectors towards the lights; only the first casts shadows
_BAND = 2**14  # pixels rendered at a time


class AnalyticScene:
    """Solids lit by two lights: Blinn-Phong shading (highlights move with the eye), hard shadows, dark crevices.

    Radiance is a function of position and direction, as a radiance field wants it, and empty space is empty.

    Args:
        seed: of the solids' places and colors.
        time: the moment, in [0, 1], of the scene that moves. None: the scene that stands still.
        others: solids in place of these.
    """

    def __init__(self, seed: int = 0, time: float | None = None, others: list[Solid] | None = None) -> None:
        of_seed = solids(seed) if time is None else moving_solids(seed, time)
        self.solids = of_seed if others is None else others
        self._steps = _STEPS if time is None and others is None else _STEPS_PATIENT

    def distance(self, points: np.ndarray) -> np.ndarray:
        """From points [3, n] to the nearest surface, [n]: negative inside, and never too large outside."""
        nearest = np.full(points.shape[1], np.inf, np.float32)
        for solid in self.solids:
            np.minimum(nearest, solid.distance(solid.local(points)), out=nearest)
        return nearest

    def render(self, c2w: np.ndarray, camera_angle_x: float, resolution: int, samples: int = 3) -> np.ndarray:
        """A square picture [resolution, resolution, 4] uint8, each pixel the mean of ``samples`` x ``samples`` rays.

        Alpha is the covered share of a pixel; colors are straight. ``c2w``: [3, 4], see :mod:`~.views`.
        """
        rows = max(1, _BAND // resolution)
        focal = np.float32(0.5 * resolution / math.tan(0.5 * camera_angle_x))
        bands = [
            self._band(c2w.astype(np.float32), focal, resolution, y, min(y + rows, resolution), samples)
            for y in range(0, resolution, rows)
        ]
        return np.concatenate(bands)

    def _band(self, c2w: np.ndarray, focal: np.float32, width: int, y0: int, y1: int, samples: int) -> np.ndarray:
        """Rows y0 to y1 of a picture."""
        y, x = np.meshgrid(np.arange(y0, y1), np.arange(width), indexing="ij")
        x, y = (c.ravel().astype(np.float32) for c in (x, y))
        inner = (np.arange(samples, dtype=np.float32) + 0.5) / samples  # sub-pixel positions
        inner_y, inner_x = (c.ravel() for c in np.meshgrid(inner, inner, indexing="ij"))
        origin, centers = c2w[:, 3:], _directions(c2w, focal, width, x + 0.5, y + 0.5)
        xs, ys = (x[:, None] + inner_x).ravel(), (y[:, None] + inner_y).ravel()  # pixel by pixel
        directions = _directions(c2w, focal, width, xs, ys)

        t = np.full(len(xs), np.inf, np.float32)
        which = np.full(len(xs), -1)
        for i, solid in enumerate(self.solids):
            o, d = solid.local(origin), solid.unturned(centers)
            pixels, start = _cone(solid, o, d, spread=np.float32(0.71) / focal)
            rays = (pixels[:, None] * samples**2 + np.arange(samples**2)).ravel()
            d = solid.unturned(_take(directions, rays))
            t_end = np.minimum(_leave(solid, o, d), t[rays])  # no further than what is known to be there
            t_hit = _march(solid, o, d, np.repeat(start, samples**2), t_end, self._steps)
            nearer = t_hit < t[rays]
            t[rays[nearer]] = t_hit[nearer]
            which[rays[nearer]] = i

        hit = np.flatnonzero(which >= 0)
        rgba = np.zeros((len(xs), 4), np.float32)
        view = _take(directions, hit)
        rgba[hit, :3] = self._shade(origin + t[hit] * view, view, which[hit]).T
        rgba[hit, 3] = 1
        block = rgba.reshape(y1 - y0, width, samples, samples, 4).swapaxes(1, 2)
        return shrink(block.reshape((y1 - y0) * samples, width * samples, 4), samples)

    def _shade(self, points: np.ndarray, view: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Radiance [3, n] that leaves surface points of the given solids against the direction ``view``."""
        colors, normals = np.empty_like(points), np.empty_like(points)
        for i, solid in enumerate(self.solids):
            mine = np.flatnonzero(which == i)
            local = solid.local(_take(points, mine))
            for out, values in ((colors, solid.color(local)), (normals, solid.turned(_normal(solid, local)))):
                for row, value in zip(out, values, strict=True):
                    row[mine] = value
        light = column(_LIGHT)
        facing = np.maximum(_dot(normals, light), 0)
        lit = facing * self._unshadowed(points + 4 * _HIT * normals, which, light, facing > 0)
        open_space = np.clip(self.distance(points + np.float32(0.12) * normals) / np.float32(0.12), 0, 1)
        diffuse = (0.54 + 0.2 * _dot(normals, column(_FILL))) * (0.4 + 0.6 * open_space) + 0.52 * lit
        half = light - view
        aligned = np.maximum(_dot(normals, half) / length(*half), 0)
        shine, sharpness = np.array([(s.shine, s.sharpness) for s in self.solids], np.float32)[which].T
        highlight = shine * aligned**sharpness * np.sqrt(lit)
        emits = np.array([s.emits for s in self.solids])[which]
        return np.where(emits, colors, np.clip(colors * diffuse + highlight, 0, 1))

    def _unshadowed(self, points: np.ndarray, which: np.ndarray, light: np.ndarray, facing: np.ndarray) -> np.ndarray:
        """1 where a point [3, n] of solid ``which`` faces the light and sees it, else 0."""
        seen = facing.copy()
        for i, solid in enumerate(self.solids):
            if not solid.casts:
                continue
            at = np.flatnonzero(seen & (which != i) if solid.convex else seen)
            o, d = solid.local(_take(points, at)), solid.unturned(light)
            middle = -_dot(o, d)
            reach = middle * middle - _dot(o, o) + np.float32(solid.radius**2)
            near = np.flatnonzero((reach > 0) & (middle + np.sqrt(np.maximum(reach, 0)) > 0))
            middle, half, o = middle[near], np.sqrt(reach[near]), _take(o, near)
            t_hit = _march(solid, o, d, np.maximum(middle - half, 0), middle + half, self._steps)
            seen[at[near[t_hit < np.inf]]] = False
        return seen.astype(np.float32)


def _directions(c2w: np.ndarray, focal: np.float32, width: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vectors [3, n] through points of a square picture, in pixels."""
    x, y = (x - width / 2) / focal, (width / 2 - y) / focal
    d = np.stack([row[0] * x + row[1] * y - row[2] for row in c2w[:, :3]])
    return d / length(*d)


def _cone(solid: Solid, o: np.ndarray, d: np.ndarray, spread: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Which cones from ``o`` [3, 1] around ``d`` [3, n] may meet a solid, [m] indices, and from where on, [m].

    ``spread``: radius of a cone per distance. One cone per pixel saves its rays most of their steps.
    """
    middle = -_dot(o, d)
    away = _dot(o, o)
    wide = np.float32(solid.radius) + spread * (np.sqrt(away) + np.float32(solid.radius))
    cones = np.flatnonzero((middle * middle - away + wide * wide > 0) & (middle + wide > 0))
    d, t = _take(d, cones), np.maximum(middle[cones] - wide, 0)
    t_end = middle[cones] + wide
    found = np.zeros(len(cones), bool)
    start = np.zeros_like(t)
    alive = np.arange(len(cones))
    for _ in range(_STEPS):
        room = solid.distance(o + t * d) - spread * t
        touches = room < 0.5 * spread * t + _HIT
        found[alive[touches]] = True
        start[alive[touches]] = t[touches]
        t = t + room / (1 + spread)
        going = np.flatnonzero(~touches & (t < t_end))
        if not len(going):
            break
        alive, t, t_end, d = alive[going], t[going], t_end[going], _take(d, going)
    else:
        found[alive], start[alive] = True, t
    return cones[found], start[found]


def _march(solid: Solid, o: np.ndarray, d: np.ndarray, t: np.ndarray, t_end: np.ndarray, steps: int) -> np.ndarray:
    """Where rays ([3, n] or [3, 1], the solid's frame) meet a solid between t and t_end, [n]; inf: nowhere."""
    t_hit = np.full(len(t), np.inf, np.float32)
    alive = np.arange(len(t))
    for _ in range(steps):
        distance = solid.distance(o + t * d)
        hit = distance < _HIT
        t = np.minimum(t + distance, t_end)
        t_hit[alive[hit]] = t[hit]
        going = np.flatnonzero(~hit & (t < t_end))
        if not len(going):
            break
        if len(going) < 0.8 * len(t):  # a ray that is done may step on: nothing changes for it
            alive, t, t_end = alive[going], t[going], t_end[going]
            o, d = (v if v.shape[1] == 1 else _take(v, going) for v in (o, d))
    return t_hit


def _leave(solid: Solid, o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Where rays leave the sphere around a solid; 0 if they do not meet it."""
    middle = -_dot(o, d)
    reach = middle * middle - _dot(o, o) + np.float32(solid.radius**2)
    return np.where(reach > 0, middle + np.sqrt(np.maximum(reach, 0)), 0)


def _normal(solid: Solid, local: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """The distance's gradient, from its values at the corners of a tetrahedron."""
    normal = np.zeros_like(local)
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        normal += column(corner) * solid.distance(local + np.float32(h) * column(corner))
    return normal / length(*normal)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _take(vectors: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """``vectors[:, indices]``, which is four times slower and keeps other threads from running."""
    return np.take(vectors, indices, 1)
