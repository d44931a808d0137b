"""What once failed inside of torch, or gave NaN: each case was found by the tests in ``tests/fuzz``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf import nerfacc
from lightning_nerf.nerfacc.cameras import opencv_lens_undistortion, opencv_lens_undistortion_fisheye
from lightning_nerf.nerfacc.losses import distortion
from lightning_nerf.nerfacc.volrend import accumulate_along_rays_
from tests.ops.harness import DEVICES

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("device", DEVICES)
def test_strange_alphas_leave_no_nan_in_the_gradients_of_others(device: str) -> None:
    alphas = torch.tensor([NAN, 0.25, INF, 0.5], device=device, requires_grad=True)
    weights, trans = nerfacc.render_weight_from_alpha(alphas, packed_info=torch.tensor([[0, 4]], device=device))
    assert weights.tolist() == [0, 0.25, 0.75, 0]
    assert trans.tolist() == [1, 1, 0.75, 0]
    # d/da_1 of w_1 + T_2 + w_2 = a_1 + 2 (1 - a_1); what is clamped has none, nor what stands behind an opaque sample.
    assert torch.autograd.grad((weights + trans).sum(), alphas)[0].tolist() == [0, -1, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("learned", [False, True])
def test_strange_densities_between_learned_edges(device: str, learned: bool) -> None:
    sigmas = torch.tensor([NAN, -1.0, INF, INF, 2.0, 1e30], device=device, requires_grad=True)
    t_starts = torch.zeros(6, device=device, requires_grad=learned)
    t_ends = torch.tensor([1.0, 1.0, 0.0, 0.5, -1.0, 1e9], device=device, requires_grad=learned)
    trans, alphas = nerfacc.render_transmittance_from_density(t_starts, t_ends, sigmas)
    assert alphas.tolist() == [0, 0, 0, 1, 0, 1]
    assert trans.tolist() == [1, 1, 1, 1, 0, 0]
    inputs = [sigmas, t_starts, t_ends] if learned else [sigmas]
    for grad in torch.autograd.grad((trans + alphas).sum(), inputs):
        assert grad.tolist() == [0] * 6  # void or opaque, each of them


@pytest.mark.parametrize("device", DEVICES)
def test_a_scan_of_a_number(device: str) -> None:
    x = torch.tensor(3.0, device=device, requires_grad=True)
    for function, expected in ((nerfacc.exclusive_sum, 0.0), (nerfacc.exclusive_prod, 1.0)):
        out = function(x)
        assert out.shape == ()
        assert out.item() == expected
        assert torch.autograd.grad(out, x)[0].item() == 0


def test_bad_arguments_are_named() -> None:
    n = torch.ones(4)
    index = torch.tensor([0, 0, 1, 1])
    columns = n[:, None]
    estimator = nerfacc.PropNetEstimator()

    def prop_net(trans: Tensor) -> None:
        estimator.sampling([lambda t, _: torch.ones_like(t)], [3], 4, 2, 0.1, 1.0, requires_grad=True)
        estimator.compute_loss(trans)

    occ_grid = nerfacc.OccGridEstimator([0, 0, 0, 1, 1, 1], 2)
    for call, message in [
        (lambda: nerfacc.render_weight_from_alpha(n, prefix_trans=n[:3]), r"prefix_trans: expected .* broadcast to \[4\]"),
        (lambda: nerfacc.render_weight_from_alpha(n, prefix_trans=n.to("meta")), "prefix_trans: expected a tensor on cpu"),
        (
            lambda: nerfacc.render_weight_from_alpha(torch.tensor(0.5)),
            r"alphas: expected floats .* got torch.float32 of \[\]",
        ),
        (lambda: nerfacc.render_weight_from_density(n, n, n.long()), "sigmas: expected floats"),
        (lambda: nerfacc.accumulate_along_rays(n, None, index, -1), "n_rays: expected >= 0, got -1"),
        (lambda: nerfacc.accumulate_along_rays(n, None, index, 0), "n_rays: expected at least 1 for 4 samples, got 0"),
        (lambda: nerfacc.accumulate_along_rays(n, None, index, 1), "ray_indices: expected 0 <= index < n_rays = 1"),
        (lambda: nerfacc.accumulate_along_rays(n, columns.to("meta"), index, 2), "values: expected a tensor on cpu"),
        (
            lambda: accumulate_along_rays_(n, None, index, torch.zeros(1, 1)),
            "ray_indices: expected 0 <= index < n_rays = 1",
        ),
        (lambda: accumulate_along_rays_(n, None, index, torch.zeros(0, 1)), "outputs: expected a row for each ray"),
        (lambda: accumulate_along_rays_(n, None, None, torch.zeros(2)), r"outputs: expected shape \[1\], got \[2\]"),
        (lambda: accumulate_along_rays_(n, None, index, torch.zeros(2, 1).long()), "outputs: expected dtype"),
        (lambda: nerfacc.pack_info(index, -1), "n_rays: expected >= 0, got -1"),
        (lambda: distortion(n, n, n, index, 1), "ray_indices: expected 0 <= index < n_rays = 1"),
        (lambda: nerfacc.exclusive_sum(n, indices=index.to("meta")), "indices: expected a tensor on cpu"),
        (lambda: prop_net(torch.ones(2, 5)), r"trans: expected shape \[2, 4\], got \[2, 5\]"),
        (lambda: estimator.sampling([], [], 4, -1, 0.1, 1.0), "n_rays: expected >= 0, got -1"),
        (lambda: estimator.sampling([], [], 4, 1, 0.0, INF, "uniform"), "far_plane: expected a finite number, got inf"),
        (lambda: occ_grid.update_every_n_steps(0, lambda p: p[:, 0], n=0), "n: expected >= 1, got 0"),
        (lambda: occ_grid.update_every_n_steps(0, lambda p: p[:, 0].to("meta")), "occ_eval_fn: .* on cpu, got meta"),
        (lambda: nerfacc.OccGridEstimator(torch.ones(6, dtype=torch.complex64)), "roi_aabb: expected real numbers"),
        (
            lambda: nerfacc.traverse_grids(*torch.ones(2, 1, 3), torch.ones(1, 1, 1, 1).bool(), torch.ones(1, 6)),
            "aabbs: expected minimum < maximum",
        ),
        (
            lambda: nerfacc.rendering(n, n, index, 2, lambda *_: (torch.ones(4, 3), n), render_bkgd=torch.ones(1, 5, 1)),
            r"render_bkgd: expected .* broadcast to \[2, 3\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_in_place_sums_of_another_float_type() -> None:
    outputs = torch.zeros(2, 1, dtype=torch.float16)
    accumulate_along_rays_(torch.ones(4), None, torch.tensor([1, 0, 1, 1]), outputs)
    assert outputs.tolist() == [[1], [3]]


def test_cdfs_of_another_layout() -> None:
    edges = torch.linspace(0, 1, 4).repeat(2, 1)
    cdfs = edges.t().contiguous().t()
    new = nerfacc.importance_sampling(nerfacc.RayIntervals(edges), cdfs.reshape(-1), 3)[0]
    torch.testing.assert_close(nerfacc.importance_sampling(nerfacc.RayIntervals(edges), cdfs, 3)[0].vals, new.vals)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_undistortion_stays_within_the_dtype(device: str, dtype: torch.dtype) -> None:
    uv = torch.tensor([[0.0, -1e4], [0.7, 1.0]], device=device).to(dtype)
    for last in (0.1, -1.0, 1e20, -1e30):
        params = torch.tensor([0, 1e20, 0, 0, 0, 0, 0, last], device=device)
        assert opencv_lens_undistortion(uv, params).isfinite().all()
        assert opencv_lens_undistortion_fisheye(uv, params[4:]).isfinite().all()


def test_a_step_that_is_no_number() -> None:
    grid = nerfacc.OccGridEstimator([-1.0, -1, -1, 1, 1, 1], resolution=2)
    with pytest.raises(ValueError, match="step_size"):
        grid.sampling(torch.zeros(1, 3), torch.ones(1, 3), render_step_size=float("nan"))
