"""What a deformed field hands on from its canonical field: noise along rays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.fields import VanillaField
from tests.fields.test_deformed import bound, samples_with_a_tail


@pytest.mark.parametrize("training", [True, False])
def test_rays_see_the_canonical_field_s_noise_in_training_and_grids_do_not(training: bool) -> None:
    """As of the canonical field itself: in queries as in outputs."""
    field = bound(VanillaField(16, 2, None, 16, density_activation="softplus", density_noise=1.0)).train(training)
    rays, samples = samples_with_a_tail()
    n, found = int(samples.offsets[-1]), list[Tensor]()
    for ask in (lambda: field.query(rays, samples).values, lambda: field.at_samples(rays, samples).density):
        assert torch.equal(ask()[:n], ask()[:n]) != training
        field.canonical.noise_key[2] = 7  # type: ignore[index, operator]
        found.append(ask()[:n])
    torch.testing.assert_close(*found)
    assert field.is_noisy == training
    positions = rays.origins + rays.directions
    assert rays.times is not None
    assert torch.equal(*(field.density(positions, times=rays.times) for _ in range(2)))
