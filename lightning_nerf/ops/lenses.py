"""Lenses: the maths from a pixel to the direction of its ray, and back.

A camera's axes here are OpenCV's: x right, y down, z forward. A pixel's *offset* is its distance from the principal point
in focal lengths, ``u = (x + 0.5 - cx) / fx``, ``v = (y + 0.5 - cy) / fy``. A lens distorts an ideal place (a, b) of the
picture into this offset; :func:`undistort` finds the ideal place of an offset:

- opencv: ``(a, b) = (X / Z, Y / Z)``; with ``s = a^2 + b^2``

      u = a (1 + k1 s + k2 s^2 + k3 s^3) / (1 + k4 s + k5 s^2 + k6 s^3) + 2 p1 a b + p2 (s + 2 a^2)
      v = b (1 + k1 s + k2 s^2 + k3 s^3) / (1 + k4 s + k5 s^2 + k6 s^3) + p1 (s + 2 b^2) + 2 p2 a b

  (Brown, "Decentering distortion of lenses", 1966; OpenCV, "Camera calibration and 3D reconstruction").
- fisheye: (a, b) points as (X, Y) does and is as long as the angle theta to the axis, up to pi;
  ``(u, v) = (a, b) (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)`` (Kannala and Brandt, "A generic camera model
  and calibration method for conventional, wide-angle, and fish-eye lenses", 2006, in the form of OpenCV's fisheye).
- equirectangular: ``(u, v) = (a, b)``, longitude and latitude in radians.
- pinhole: ``(u, v) = (a, b) = (X / Z, Y / Z)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PINHOLE, OPENCV, FISHEYE, EQUIRECTANGULAR = range(4)  # places in cameras.LENS_MODELS

_RADIAL_STEPS = 16  # for the radius; near a fold, where Newton's steps only halve the error, 2^-16 of it squares to nothing
_FLAT = 1e-6  # a determinant below which the picture has a fold
_SMALL = 1e-7  # of theta^2: series of two terms are exact in float64 below
_TOLERANCE = 1e-5  # pixels by which a found place, in float64, may miss its pixel
_GRID = 512  # places at which a lens is tested for folds


class Lens(NamedTuple):
    """The lens of each of R rays, or one for all of them: R = 1."""

    model: Tensor  # [R] int64: PINHOLE, OPENCV, FISHEYE or EQUIRECTANGULAR
    coefficients: Tensor  # [R, 8], see cameras.LENS_MODELS


class _Terms(NamedTuple):
    """One form for all lenses: ``(1 + n1 s + ... + n4 s^4) / (1 + d1 s + d2 s^2 + d3 s^3)`` and the tangential part."""

    n1: Tensor
    n2: Tensor
    n3: Tensor
    n4: Tensor
    d1: Tensor
    d2: Tensor
    d3: Tensor
    p1: Tensor
    p2: Tensor


def undistort(u: Tensor, v: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """The ideal places (a, b) of offsets (u, v), [R] each; see the module. Differentiable three times.

    Outside of the lens's valid region (:func:`is_valid`) the place has no meaning, but is finite. All steps but the last
    two are in float32; these are in the dtype of ``u``: of a float64 the place is right to 1e-14.
    """
    with torch.no_grad():
        t = _terms(lens.model, lens.coefficients.float())
        u32, v32 = u.float(), v.float()
        target = (u32 * u32 + v32 * v32).sqrt()
        divisor = torch.where(target > 0, target, 1)
        bend = 3 * (t.p1 * v32 + t.p2 * u32) / divisor
        factor = torch.where(target > 0, _radius(target, bend, t) / divisor, 1)
        a, b = _newton(u32 * factor, v32 * factor, u32, v32, t)
        a, b = a.to(u), b.to(v)
    # Two steps carry the first three derivatives, whatever they begin with: each step doubles the order that is right.
    t = _terms(lens.model, lens.coefficients.to(u))
    for _ in range(2):
        a, b = _newton(a, b, u, v, t)
    return a, b


def distort(a: Tensor, b: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """The offsets (u, v) of ideal places (a, b); the inverse of :func:`undistort`."""
    shift_u, shift_v, *_ = _shift(a, b, _terms(lens.model, lens.coefficients.to(a)))
    return a + shift_u, b + shift_v


def density(a: Tensor, b: Tensor, lens: Lens) -> Tensor:
    """Area of the offsets (u, v) per area of the ideal places (a, b): the determinant of the derivative of distort."""
    _, _, aa, ab, bb = _shift(a, b, _terms(lens.model, lens.coefficients.to(a)))
    return aa * bb - ab * ab


def view_directions(a: Tensor, b: Tensor, lens: Lens) -> Tensor:
    """Directions [R, 3] of ideal places in a camera's OpenGL axes, right, up, backwards; not of unit length."""
    ratio, cosine = _sine_ratio(a, b)
    fisheye, sphere = (lens.model == FISHEYE, lens.model == EQUIRECTANGULAR)
    one = torch.ones_like(a)
    x = torch.where(fisheye, ratio * a, torch.where(sphere, b.cos() * a.sin(), a))
    y = torch.where(fisheye, -ratio * b, torch.where(sphere, -b.sin(), -b))
    z = torch.where(fisheye, -cosine, torch.where(sphere, -b.cos() * a.cos(), -one))
    return torch.stack([x, y, z], -1)


def area_per_place(a: Tensor, b: Tensor, lens: Lens) -> Tensor:
    """Area at distance 1 along the ray per area of ideal places: ``footprint^2 = area_per_place / (fx fy density)``.

    For lenses with a plane of projection, pinhole and opencv, it lies in a plane parallel to the picture:
    ``1 / (1 + a^2 + b^2)``. For fisheye and equirectangular it is the solid angle: ``sin(theta) / theta`` and ``cos(b)``.
    """
    ratio, _ = _sine_ratio(a, b)
    flat = 1 / (1 + a * a + b * b)
    return torch.where(lens.model == FISHEYE, ratio, torch.where(lens.model == EQUIRECTANGULAR, b.cos(), flat)).abs()


def places(directions: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """Ideal places (a, b) of directions [R, 3] in OpenGL axes, of any length; behind a pinhole or an opencv lens: NaN."""
    x, y, z = directions[:, 0], -directions[:, 1], -directions[:, 2]
    across = (x * x + y * y).sqrt()
    theta = torch.atan2(across, z)
    stretch = torch.where(across > 0, theta / across.where(across > 0, 1), 1 / z)
    in_front = torch.where(z > 0, z, torch.nan)
    fisheye, sphere = (lens.model == FISHEYE, lens.model == EQUIRECTANGULAR)
    a = torch.where(fisheye, x * stretch, torch.where(sphere, torch.atan2(x, z), x / in_front))
    b = torch.where(fisheye, y * stretch, torch.where(sphere, torch.atan2(y, (x * x + z * z).sqrt()), y / in_front))
    return a, b


def is_valid(u: Tensor, v: Tensor, a: Tensor, b: Tensor, focal: Tensor, lens: Lens, limit: Tensor) -> Tensor:
    """Whether the lens sees anything at offsets (u, v), whose ideal places are (a, b) by :func:`undistort`; [R] bool.

    It does not where the distortion folds the picture back, where no place was found, more than pi off the axis of a
    fisheye, and beyond the poles and the seam of an equirectangular picture.

    Args:
        focal: [R] or [1], pixels; the greater focal length.
        limit: [R] or [1], :func:`radius_limit` of the lenses.
    """
    back_u, back_v = distort(a, b, lens)
    miss = torch.maximum((back_u - u).abs(), (back_v - v).abs()) * focal
    limit = limit.to(a)
    found = (miss <= _TOLERANCE) & (density(a, b, lens) > 0) & (a * a + b * b <= limit * limit)
    on_sphere = (a.abs() <= math.pi) & (b.abs() <= math.pi / 2)
    return torch.where(lens.model == EQUIRECTANGULAR, on_sphere, found)


def radius_limit(lens: Lens) -> Tensor:
    """Length of (a, b) up to which the radial distortion rises [R]; without a fold it is pi for a fisheye, else infinite.

    To about 1e-5 of itself: the derivative is tested on a grid, and taken as linear where it changes its sign.
    """
    terms = _Terms(*(term[:, None] for term in _terms(lens.model, lens.coefficients)))
    angles = torch.linspace(0, 1, _GRID + 1, dtype=lens.coefficients.dtype, device=lens.coefficients.device)
    fisheye = lens.model == FISHEYE
    r = torch.where(fisheye[:, None], angles * math.pi, (angles * (math.pi / 2 - 1e-3)).tan())
    slope, pole = _slope(r * r, terms)
    falls = ~((slope > 0) & (pole > 0))
    first = falls.int().argmax(1, keepdim=True)  # 0: nowhere, as the slope at 0 is 1
    low, high = r.gather(1, (first - 1).clamp(min=0)), r.gather(1, first)
    before, after = slope.gather(1, (first - 1).clamp(min=0)), slope.gather(1, first)
    share = torch.where(after <= 0, before / (before - after), torch.zeros_like(before))  # a pole: before it
    fold = (low + (high - low) * share)[:, 0]
    whole = torch.where(fisheye, math.pi, torch.inf).to(fold)
    folds = (first[:, 0] > 0) & ((lens.model == OPENCV) | fisheye)
    return torch.where(folds, fold, whole)


def _terms(model: Tensor, coefficients: Tensor) -> _Terms:
    c = coefficients.unbind(-1)
    opencv, fisheye = (model == OPENCV, model == FISHEYE)

    def chosen(of_opencv: Tensor | float, of_fisheye: Tensor | float) -> Tensor:
        return torch.where(opencv, of_opencv, torch.where(fisheye, of_fisheye, 0.0)).to(coefficients)

    radial = (chosen(c[0], c[0]), chosen(c[1], c[1]), chosen(c[4], c[2]), chosen(0.0, c[3]))
    rational = (chosen(c[5], 0.0), chosen(c[6], 0.0), chosen(c[7], 0.0))
    return _Terms(*radial, *rational, chosen(c[2], 0.0), chosen(c[3], 0.0))


def _radial(s: Tensor, t: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    """By how much the radial factor exceeds 1, its derivative by s, and the denominator, beyond whose zero is nothing.

    The excess is small where the factor is near 1: adding it to the place costs no more than one rounding.
    """
    n = s * (t.n1 + s * (t.n2 + s * (t.n3 + s * t.n4)))
    d = s * (t.d1 + s * (t.d2 + s * t.d3))
    dn = t.n1 + s * (2 * t.n2 + s * (3 * t.n3 + s * (4 * t.n4)))
    dd = t.d1 + s * (2 * t.d2 + s * (3 * t.d3))
    pole = 1 + d
    excess = (n - d) / pole
    return excess, (dn - (1 + excess) * dd) / pole, pole


def _slope(s: Tensor, t: _Terms) -> tuple[Tensor, Tensor]:
    """Derivative of the distorted radius by the radius, and the denominator."""
    excess, slope, pole = _radial(s, t)
    return 1 + excess + 2 * s * slope, pole


def _shift(a: Tensor, b: Tensor, t: _Terms) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Distorted minus ideal place, and the symmetric derivative of the distorted one: by a, across, by b."""
    s, ab = a * a + b * b, a * b
    excess, slope, _ = _radial(s, t)
    u = a * excess + (2 * t.p1 * ab + t.p2 * (s + 2 * a * a))
    v = b * excess + (t.p1 * (s + 2 * b * b) + 2 * t.p2 * ab)
    across = 2 * ab * slope + 2 * (t.p1 * a + t.p2 * b)
    by_a = 1 + excess + 2 * a * a * slope + (2 * t.p1 * b + 6 * t.p2 * a)
    by_b = 1 + excess + 2 * b * b * slope + (6 * t.p1 * b + 2 * t.p2 * a)
    return u, v, by_a, across, by_b


def _radius(target: Tensor, bend: Tensor, t: _Terms) -> Tensor:
    """The least radius whose distorted one is ``target``: Newton's steps, halving where one leaves what is known.

    ``bend``: what the tangential part adds to the radius, per square of it, in the pixel's direction. Near a fold it moves
    the place by many times as much.
    """
    r, low, high = target, torch.zeros_like(target), torch.full_like(target, torch.inf)
    for _ in range(_RADIAL_STEPS):
        excess, by_s, pole = _radial(r * r, t)
        slope = 1 + excess + 2 * (r * r) * by_s + 2 * bend * r
        miss = (r - target) + r * (excess + bend * r)
        rises = (slope > 0) & (pole > 0)
        past = (miss > 0) | ~rises
        low, high = torch.where(past, low, r), torch.where(past, r, high)
        step = r - miss / slope
        halved = torch.where(high < torch.inf, (low + high) / 2, 2 * r)
        r = torch.where(rises & (step >= low) & (step <= high), step, halved)
    return r


def _newton(a: Tensor, b: Tensor, u: Tensor, v: Tensor, t: _Terms) -> tuple[Tensor, Tensor]:
    """One step for both axes; none where the derivative is singular, or where it would go far."""
    shift_u, shift_v, aa, ab, bb = _shift(a, b, t)
    miss_u, miss_v = (a - u) + shift_u, (b - v) + shift_v
    determinant = aa * bb - ab * ab
    regular = torch.where(determinant > _FLAT, determinant, 1)
    step_a, step_b = (bb * miss_u - ab * miss_v) / regular, (aa * miss_v - ab * miss_u) / regular
    taken = (determinant > _FLAT) & (step_a.abs() + step_b.abs() <= 1 + a.abs() + b.abs())
    return a - torch.where(taken, step_a, 0), b - torch.where(taken, step_b, 0)


def _sine_ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``sin(theta) / theta`` and ``cos(theta)`` of ``theta^2 = a^2 + b^2``, smooth at 0."""
    s = a * a + b * b
    small = s < _SMALL
    theta = torch.where(small, 1, s).sqrt()
    return torch.where(small, 1 - s / 6, theta.sin() / theta), torch.where(small, 1 - s / 2, theta.cos())
