from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc.cameras import (
    _opencv_lens_distortion,
    _opencv_lens_distortion_fisheye,
    opencv_lens_undistortion,
    opencv_lens_undistortion_fisheye,
)
from tests.ops.harness import DEVICES, assert_detected, rand

N_PARAMS = [1, 2, 4, 5, 8, 12]


def distorted(uv: Tensor, params: Tensor) -> Tensor:
    """OpenCV's formula, written out with its names, in float64."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = [*params.double().tolist(), *[0.0] * (12 - len(params))]
    u, v = uv.double().unbind(-1)
    r2 = u**2 + v**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2) + s1 * r2 + s2 * r2**2
    y = v * radial + p1 * (r2 + 2 * v**2) + 2 * p2 * u * v + s3 * r2 + s4 * r2**2
    return torch.stack([x, y], -1)


def fisheye_distorted(uv: Tensor, params: Tensor) -> Tensor:
    """A point at angle theta from the axis goes to radius theta (1 + k1 theta^2 + ...)."""
    radius = uv.double().norm(dim=-1, keepdim=True)
    theta = radius.atan()
    powers = sum(float(k) * theta ** (2 * i + 2) for i, k in enumerate(params))
    return uv.double() * torch.where(radius > 0, theta * (1 + powers) / radius, 1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", N_PARAMS)
def test_the_inverse_takes_points_back(device: str, dtype: torch.dtype, n: int) -> None:
    points, params = rand(5, 400, 2, seed=0, low=-0.7, high=0.7).to(dtype), rand(n, seed=1, low=-0.08, high=0.08).to(dtype)
    there = distorted(points, params)
    assert (there - points).abs().max() > 0.005
    back = opencv_lens_undistortion(there.to(device, dtype), params.to(device)).cpu()
    # A step below eps = 1e-6 is followed by an error of its square: what is left is the rounding of the input.
    atol = 2e-7 if dtype is torch.float32 else 1e-11
    torch.testing.assert_close(back, points, rtol=0, atol=atol)
    forward = _opencv_lens_distortion(points.to(device), params.to(device)).cpu()
    torch.testing.assert_close(forward, there.to(dtype), rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-14)


def test_parameters_have_opencvs_order() -> None:
    points = rand(50, 2, seed=0, low=-0.5, high=0.5)
    for i in range(8):
        params = torch.zeros(8)
        params[i] = 0.1
        wrong = params.roll(1)
        back = opencv_lens_undistortion(distorted(points, params).float(), params)
        torch.testing.assert_close(back, points, rtol=0, atol=2e-7)
        assert_detected(
            lambda p=params, w=wrong: torch.testing.assert_close(
                opencv_lens_undistortion(distorted(points, p).float(), w), points, rtol=0, atol=1e-5
            )
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fisheye_inverse_takes_points_back(device: str, dtype: torch.dtype) -> None:
    points, params = (
        rand(5, 400, 2, seed=0, low=-3, high=3).to(dtype),
        torch.tensor([0.03, -0.01, 0.004, -0.001], dtype=dtype),
    )
    points[0, 0] = 0.0
    there = fisheye_distorted(points, params)
    assert (there - points).abs().max() > 1
    back = opencv_lens_undistortion_fisheye(there.to(device, dtype), params.to(device)).cpu()
    # tan stretches errors by 1 / cos^2 < 20 at a radius of 4.3: 1.5 * 2^-24 * 20.
    torch.testing.assert_close(back, points, rtol=0, atol=4e-6 if dtype is torch.float32 else 1e-9)
    forward = _opencv_lens_distortion_fisheye(points.to(device), params.to(device)).cpu()
    torch.testing.assert_close(forward, there.to(dtype), rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_broadcast(device: str) -> None:
    uv, params = rand(3, 4, 5, 2, seed=0, low=-0.5, high=0.5).to(device), rand(3, 1, 1, 4, seed=1, high=0.05).to(device)
    for function in (opencv_lens_undistortion, opencv_lens_undistortion_fisheye):
        together = function(uv, params)
        assert together.shape == uv.shape
        for i in range(3):
            torch.testing.assert_close(together[i], function(uv[i], params[i, 0, 0]), rtol=0, atol=0)
            torch.testing.assert_close(together[i], function(uv[i], params[i].expand(4, 5, 4)), rtol=0, atol=0)


def test_nothing_to_undistort() -> None:
    uv = rand(7, 2, seed=0)
    torch.testing.assert_close(opencv_lens_undistortion(uv, torch.zeros(0)), uv, rtol=0, atol=0)
    torch.testing.assert_close(opencv_lens_undistortion(uv, torch.zeros(8)), uv, rtol=0, atol=0)
    torch.testing.assert_close(opencv_lens_undistortion(uv, torch.ones(8), iters=0), uv, rtol=0, atol=0)
    for function in (opencv_lens_undistortion, opencv_lens_undistortion_fisheye):
        assert function(uv[:0], torch.ones(4)).shape == (0, 2)
    assert not opencv_lens_undistortion(uv.requires_grad_(), torch.ones(4)).requires_grad


def test_where_newton_fails_the_result_is_defined() -> None:
    # 1 + 3 k1 theta^2 is negative: theta runs to the other side.
    lost = opencv_lens_undistortion_fisheye(torch.tensor([[1.4, 0.0], [0.01, 0.0]]), torch.tensor([-3.0, 0.0, 0.0, 0.0]))
    assert lost[0].tolist() == [0.0, 0.0]
    assert lost[1, 0] == pytest.approx(0.01, abs=1e-4)
    # Beyond a radius of pi / 2 points are taken to lie there.
    far = opencv_lens_undistortion_fisheye(torch.tensor([[2.0, 0.0]]), torch.tensor([0.3, 0.0, 0.0, 0.0]))
    near = opencv_lens_undistortion_fisheye(torch.tensor([[math.pi / 2, 0.0]]), torch.tensor([0.3, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(far / 2, near / (math.pi / 2))
    # A singular Jacobian ends the search: x (1 - x^2 / 3) has its greatest value at 1.
    assert opencv_lens_undistortion(torch.tensor([[1.0, 0.0]]), torch.tensor([-1 / 3])).isfinite().all()


def test_wrong_arguments_are_named() -> None:
    uv = torch.zeros(4, 2)
    for arguments, name in (
        ((uv[:, :1], torch.zeros(4)), "uv"),
        ((uv.long(), torch.zeros(4)), "uv"),
        ((uv, torch.zeros(3)), "params"),
        ((uv, torch.zeros(3, 4)), "params"),
        ((uv, torch.zeros(2, 4, 4)), "params"),
    ):
        for function in (opencv_lens_undistortion, opencv_lens_undistortion_fisheye):
            with pytest.raises(ValueError, match=name):
                function(*arguments)
