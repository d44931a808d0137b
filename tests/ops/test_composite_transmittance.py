from __future__ import annotations

import pytest
import torch

from lightning_nerf.ops.composite import composite
from tests.ops.harness import DEVICES, poison_tail, to
from tests.ops.test_composite import make


@pytest.mark.parametrize("device", DEVICES)
def test_transmittance_on_request(device: str) -> None:
    densities, channels, t_starts, t_ends, offsets = args = to(device, make([0, 3, 1, 0, 5]))
    densities, t_starts, t_ends = (poison_tail(a, 9, extra=2) for a in (densities, t_starts, t_ends))
    channels = poison_tail(channels, 9, extra=2)
    out = composite(densities, channels, t_starts, t_ends, offsets, return_transmittance=True)
    assert out.weights is None
    assert composite(*args).transmittance is None
    assert out.transmittance is not None
    tau = (densities * (t_ends - t_starts)).double()
    expected = torch.zeros(11, dtype=torch.float64, device=device)
    for begin, end in [(0, 3), (3, 4), (4, 9)]:
        expected[begin:end] = torch.exp(tau[begin:end] - tau[begin:end].cumsum(0))
    # Weights are float32 numbers below 1: half an ulp for each of up to five.
    torch.testing.assert_close(out.transmittance.double(), expected, rtol=0, atol=5 * 2**-24 + 1e-7)
