from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_nerf import nerfacc
from tests.fuzz.strategies import (
    FLOATS,
    INDICES,
    NAN,
    assert_finite_grads,
    assert_like,
    bounded,
    counts,
    fuzz,
    indices_of,
    packed_info_of,
    tensors,
)
from tests.ops.harness import DEVICES

SCANS = {
    "inclusive_sum": nerfacc.inclusive_sum,
    "exclusive_sum": nerfacc.exclusive_sum,
    "inclusive_prod": nerfacc.inclusive_prod,
    "exclusive_prod": nerfacc.exclusive_prod,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCANS)
@fuzz
@given(st.data())
def test_scans(device: str, name: str, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["packed_info", "indices", "rows"]))
    sizes = data.draw(counts())
    shape = (sum(sizes),)
    index = data.draw(st.sampled_from(INDICES))
    where = {}
    if form == "packed_info":
        where = {"packed_info": packed_info_of(sizes, device, index)}
    elif form == "indices":
        where = {"indices": indices_of(sizes, device, index)}
    else:
        shape = tuple(data.draw(st.lists(st.integers(0, 4), min_size=0, max_size=3)))
    inputs = data.draw(tensors(shape, (0.0, -0.0, 1.0, -1.0, 0.5, 2.0), device, FLOATS)).requires_grad_()
    with bounded():
        out = SCANS[name](inputs, **where)
        assert_like(out, shape, inputs.dtype, device)
        assert_finite_grads([out], [inputs])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_ray(device: str, name: str, bad: float) -> None:
    sizes = [3, 4, 0, 2]
    inputs = torch.ones(9)
    inputs[4] = bad
    for where in ({"packed_info": packed_info_of(sizes, device)}, {"indices": indices_of(sizes, device)}):
        leaf = inputs.to(device).requires_grad_()
        out = SCANS[name](leaf, **where)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        for others in (out, grad):
            assert torch.cat([others[:3], others[7:]]).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_giant_ray(device: str, name: str, dtype: torch.dtype) -> None:
    n = 10**5 + 1
    for where in ({"packed_info": packed_info_of([0, n], device)}, {"indices": indices_of([0, n], device)}, {}):
        inputs = torch.ones(n, device=device, dtype=dtype, requires_grad=True)
        with bounded():
            out = SCANS[name](inputs if where else inputs.view(1, n), **where)
            assert out.dtype == dtype
            assert not out.isnan().any()  # float16 ends at 65504
            assert not torch.autograd.grad(out.sum(), inputs)[0].isnan().any()


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(counts(), st.sampled_from(INDICES), st.integers(0, 3))
def test_pack_info(device: str, sizes: list[int], index: torch.dtype, more: int) -> None:
    with bounded():
        info = nerfacc.pack_info(indices_of(sizes, device, index), len(sizes) + more)
        assert_like(info, (len(sizes) + more, 2), torch.int64, device)
        assert info[:, 1].tolist() == [*sizes, *[0] * more]
        assert info[:, 0].tolist() == [*(info[:, 1].cumsum(0) - info[:, 1])]
        info = nerfacc.pack_info(indices_of(sizes, device, index))
        assert info[:, 1].sum() == sum(sizes)
