"""OpenCV's lens distortions and their inverses, by Newton's method on all points at once.

Points are normalized image coordinates: ``(u - cx) / fx, (v - cy) / fy``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device
from lightning_nerf.nerfacc.errors import argument_errors

_N_PARAMS = (0, 1, 2, 4, 5, 8, 12)


@argument_errors
@torch.no_grad()
def opencv_lens_undistortion(uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10) -> Tensor:
    """Find where points would be without the lens: the inverse of OpenCV's distortion.

    Newton's method starts from the distorted point and takes at most ``iters`` steps, in float64. A point ends where its
    step is shorter than ``eps``, where the Jacobian's determinant is below ``eps``, or where the next step would leave the
    range of its dtype; in the last two cases it is not undistorted.

    Args:
        uv: [..., 2] distorted points, in normalized image coordinates.
        params: [N] or [..., N], broadcast to the points, the first N of OpenCV's k1, k2, p1, p2, k3, k4, k5, k6, s1, s2,
            s3, s4; N is 0, 1, 2, 4, 5, 8 or 12.
        eps: see above.
        iters: see above.

    Returns:
        [..., 2], in the dtype of uv. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape, dtype or device.

    Source: OpenCV's documentation of calib3d; the inverse is Newton's method.

    >>> nerfacc.cameras.opencv_lens_undistortion(torch.tensor([[0.55, 0.0]]), torch.tensor([0.4]))
    tensor([[0.5000, 0.0000]])
    """
    _check(uv, params, _N_PARAMS)
    if params.shape[-1] == 0:
        return uv
    k = _all_params(params.double().expand(*uv.shape[:-1], -1))
    x0, y0 = uv.double().unbind(-1)
    x, y = x0, y0
    active, largest = torch.ones_like(x, dtype=torch.bool), torch.finfo(uv.dtype).max
    for _ in range(iters):
        fx, fy, fx_x, fx_y, fy_x, fy_y = _compute_residual_and_jacobian(x, y, x0, y0, k)
        det = fx_x * fy_y - fx_y * fy_x
        active = active & (det.abs() >= eps)
        dx = torch.where(active, (fx_y * fy - fy_y * fx) / det, 0.0)
        dy = torch.where(active, (fy_x * fx - fx_x * fy) / det, 0.0)
        # A step beyond what the points' dtype holds goes nowhere.
        active = active & ((x + dx).abs() <= largest) & ((y + dy).abs() <= largest)
        x, y = torch.where(active, x + dx, x), torch.where(active, y + dy, y)
        active = active & ((dx.abs() >= eps) | (dy.abs() >= eps))
    return torch.stack([x, y], -1).to(uv)


# NerfAcc's name for the same in plain torch, which this is.
_opencv_lens_undistortion = opencv_lens_undistortion


@argument_errors
@torch.no_grad()
def opencv_lens_undistortion_fisheye(uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10) -> Tensor:
    """Find where points would be without a fisheye lens: the inverse of OpenCV's fisheye distortion.

    Newton's method looks for the angle from the axis, in float64, in at most ``iters`` steps, until a step is shorter than
    ``eps``. The model ends at a distorted radius of pi / 2: points beyond are taken as if they lay there.

    Args:
        uv: [..., 2] distorted points, in normalized image coordinates.
        params: [4] or [..., 4], broadcast to the points: k1, k2, k3, k4.
        eps: see above.
        iters: see above.

    Returns:
        [..., 2], in the dtype of uv; zero where the method did not converge, or to an angle of the other sign, or out of
        the dtype's range. Not differentiable.

    Raises:
        NerfAccArgument: wrong shape, dtype or device.

    Source: OpenCV's documentation of calib3d, fisheye; Kannala and Brandt, "A generic camera model", TPAMI 2006.

    >>> nerfacc.cameras.opencv_lens_undistortion_fisheye(torch.tensor([[0.7854, 0.0]]), torch.zeros(4))  # 45 degrees
    tensor([[1.0000, 0.0000]])
    """
    _check(uv, params, (4,))
    k1, k2, k3, k4 = params.double().expand(*uv.shape[:-1], -1).unbind(-1)
    points = uv.double()
    distorted = points.norm(dim=-1).clamp(max=math.pi / 2)
    theta, converged = distorted, distorted <= eps
    for _ in range(iters):
        t = theta * theta
        value = theta * (1 + t * (k1 + t * (k2 + t * (k3 + t * k4)))) - distorted
        slope = 1 + t * (3 * k1 + t * (5 * k2 + t * (7 * k3 + t * (9 * k4))))
        step = torch.where(converged, 0.0, value / slope)
        theta = theta - step
        converged = converged | (step.abs() < eps)
    # Near the axis the ratio is 1, and 0 / 0 in floats.
    scale = torch.where(distorted <= eps, 1.0, theta.tan() / distorted)
    undistorted = points * scale[..., None]
    held = (undistorted.abs() <= torch.finfo(uv.dtype).max).all(-1)
    valid = (converged & (theta >= 0) & held)[..., None]
    return torch.where(valid, undistorted, 0.0).to(uv)


def _opencv_lens_distortion(uv: Tensor, params: Tensor) -> Tensor:
    """Where the lens puts points [..., 2]; ``params`` as in :func:`opencv_lens_undistortion`."""
    _check(uv, params, _N_PARAMS)
    zero = torch.zeros_like(uv[..., 0])
    fx, fy, *_ = _compute_residual_and_jacobian(uv[..., 0], uv[..., 1], zero, zero, _all_params(params))
    return torch.stack([fx, fy], -1)


def _opencv_lens_distortion_fisheye(uv: Tensor, params: Tensor, eps: float = 1e-10) -> Tensor:
    """Where a fisheye lens puts points [..., 2] that lie before the camera; ``params`` [4] or [..., 4]."""
    _check(uv, params, (4,))
    k1, k2, k3, k4 = params.unbind(-1)
    r = uv.norm(dim=-1)
    theta = r.atan()
    t = theta * theta
    distorted = theta * (1 + t * (k1 + t * (k2 + t * (k3 + t * k4))))
    return uv * (distorted / r.clamp(min=eps))[..., None]


def _check(uv: Tensor, params: Tensor, lengths: tuple[int, ...]) -> None:
    if uv.ndim < 1 or uv.shape[-1] != 2 or not uv.is_floating_point():
        raise BadArgument(f"uv: expected floats of shape [..., 2], got {uv.dtype} of {list(uv.shape)}")
    if params.ndim < 1 or params.shape[-1] not in lengths:
        raise BadArgument(
            f"params: expected {' or '.join(map(str, lengths))} parameters in the last dimension, got {list(params.shape)}"
        )
    if params.is_complex():
        raise BadArgument(f"params: expected real numbers, got {params.dtype}")
    batch, points = params.shape[:-1], uv.shape[:-1]
    first = len(points) - len(batch)
    if first < 0 or any(n not in (1, m) for n, m in zip(batch, points[first:], strict=True)):
        raise BadArgument(
            f"params: expected a shape that broadcasts to uv's {list(points)}, got {list(batch)} before the last"
        )
    check_same_device(uv=uv, params=params)


def _all_params(params: Tensor) -> Tensor:
    """All twelve [..., 12]: those that are not given are 0."""
    return torch.nn.functional.pad(params, (0, _N_PARAMS[-1] - params.shape[-1]))


def _compute_residual_and_jacobian(
    x: Tensor, y: Tensor, xd: Tensor, yd: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """How far the lens puts (x, y) from (xd, yd), and the derivatives fx_x, fx_y, fy_x, fy_y."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = _all_params(params).unbind(-1)
    r = x * x + y * y  # the squared radius
    above, below = 1 + r * (k1 + r * (k2 + r * k3)), 1 + r * (k4 + r * (k5 + r * k6))
    ratio = above / below
    ratio_r = (k1 + r * (2 * k2 + r * (3 * k3)) - ratio * (k4 + r * (2 * k5 + r * (3 * k6)))) / below
    fx = ratio * x + 2 * p1 * x * y + p2 * (r + 2 * x * x) + r * (s1 + r * s2) - xd
    fy = ratio * y + 2 * p2 * x * y + p1 * (r + 2 * y * y) + r * (s3 + r * s4) - yd
    prism_x, prism_y = s1 + 2 * r * s2, s3 + 2 * r * s4  # by r
    fx_x = ratio + 2 * x * (ratio_r * x + prism_x) + 2 * p1 * y + 6 * p2 * x
    fx_y = 2 * y * (ratio_r * x + prism_x) + 2 * p1 * x + 2 * p2 * y
    fy_x = 2 * x * (ratio_r * y + prism_y) + 2 * p2 * y + 2 * p1 * x
    fy_y = ratio + 2 * y * (ratio_r * y + prism_y) + 2 * p2 * x + 6 * p1 * y
    return fx, fy, fx_x, fx_y, fy_x, fy_y
