from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_nerf.nerfacc.cameras import opencv_lens_undistortion, opencv_lens_undistortion_fisheye
from tests.fuzz.strategies import FLOATS, INF, NAN, assert_like, bounded, fuzz, tensors
from tests.ops.harness import DEVICES

LENSES = {
    "opencv": (opencv_lens_undistortion, [0, 1, 2, 4, 5, 8, 12]),
    "fisheye": (opencv_lens_undistortion_fisheye, [4]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lens", LENSES)
@fuzz
@given(st.data())
def test_undistortion(device: str, lens: str, data: st.DataObject) -> None:
    function, lengths = LENSES[lens]
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    uv = data.draw(tensors((*shape, 2), (0.0, 0.1, -0.7, 1.0, 1e-30, 60.0, -1e4), device, FLOATS))
    batch = data.draw(st.sampled_from([(), shape]))
    number = data.draw(st.sampled_from(lengths))
    params = data.draw(tensors((*batch, number), (0.0, 0.1, -0.3, 1.0, -1.0, 1e-30, 1e20, -1e30), device, FLOATS[:2]))
    iters = data.draw(st.sampled_from([0, 1, 10, 50]))
    with bounded():
        assert_like(function(uv, params, iters=iters), uv.shape, uv.dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_point(device: str, lens: str, bad: float) -> None:
    function, lengths = LENSES[lens]
    uv = torch.full((3, 2), 0.3, device=device)
    params = torch.full((3, lengths[-1]), 0.01, device=device)
    good = function(uv, params)
    uv[1, 0], params[2, 0] = bad, bad
    with bounded():
        out = function(uv, params)
        assert out.shape == (3, 2)
        torch.testing.assert_close(out[0], good[0], rtol=0, atol=0)
