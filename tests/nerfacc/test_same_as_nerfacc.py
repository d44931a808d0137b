"""Every name of the namespace against NerfAcc itself, forward and backward, where that is installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from lightning_nerf import nerfacc as ours
from tests.nerfacc.cases import CASES, Case
from tests.nerfacc.peer import nerfacc, pure_nerfacc

HELPERS = {
    "losses.distortion",
    "volrend.accumulate_along_rays_",
    "cameras.opencv_lens_undistortion",
    "cameras.opencv_lens_undistortion_fisheye",
    "grid._ray_aabb_intersect",
    "grid._enlarge_aabb",
    "grid._query",
    "pdf._sample_from_weighted",
    "estimators.prop_net._lossfun_outer",
    "estimators.prop_net._pdf_loss",
    "estimators.prop_net.get_proposal_requires_grad_fn",
}


def identify(case: Case) -> str:
    return f"{case.path} {case.form}".strip()


def compare(case: Case, peer: Any, device: str) -> None:
    actual, expected = (case.run(package, device) for package in (ours, peer))
    if case.close is not None:
        case.close(actual, expected)
        return
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        torch.testing.assert_close(a, b, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", [case for case in CASES if case.on_cpu], ids=identify)
def test_on_a_cpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pure_nerfacc()
    monkeypatch.setitem(
        sys.modules, "nerfacc.cuda._backend", None
    )  # what it has no CPU code for fails, and compiles nothing
    compare(case, peer, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=identify)
def test_on_cuda(case: Case) -> None:
    compare(case, nerfacc(), "cuda")


@pytest.mark.parametrize("case", [case for case in CASES if not case.on_cpu], ids=identify)
def test_the_others_run_on_a_cpu_as_well(case: Case) -> None:
    """Against themselves: so that what is wrong with a case is seen without a GPU."""
    compare(case, ours, "cpu")


def test_every_name_has_a_case() -> None:
    paths = {case.path for case in CASES}
    assert paths >= HELPERS
    assert {path.rpartition(".")[2] for path in paths} >= set(ours.__all__) - {"__version__"}
    assert len({identify(case) for case in CASES}) == len(CASES)


def test_the_version_is_the_one_that_is_followed() -> None:
    assert pure_nerfacc().__version__ == ours.__version__
