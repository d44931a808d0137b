"""What a deformed field hands on from its canonical field: noise along rays, and an encoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.fields import InstantNGPField, RadianceField, SpaceTimeField, VanillaField
from lightning_nerf.types import has_encoding
from tests.executors.fits import PlainField
from tests.fields.test_deformed import bound, moved, points, samples_with_a_tail


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


def hashed() -> InstantNGPField:
    return InstantNGPField(n_levels=2, log2_table_size=8, max_resolution=32)


def hashed_in_time() -> SpaceTimeField:
    field = SpaceTimeField(n_levels=2, log2_table_size=8, max_resolution=32, time_max_resolution=32)
    for grid in field.space_time:
        torch.nn.init.uniform_(grid.table)  # type: ignore[union-attr, arg-type]
    return field


@pytest.mark.parametrize("canonical", [hashed, hashed_in_time])
def test_its_encoding_is_the_canonical_field_s_at_warped_positions(
    canonical: Callable[[], InstantNGPField | SpaceTimeField],
) -> None:
    field = moved(bound(inner := canonical()))
    positions, times = points(50)[0], torch.linspace(2.0, 5.0, 50)
    there = field.warped(positions, times)
    found = field.encoded(positions, times)
    assert torch.equal(found, inner.encoded(there, times))
    assert not torch.equal(found, inner.encoded(positions, times))
    assert has_encoding(field)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in field.warp.parameters())


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [(hashed, True), (lambda: bound(hashed()), True), (PlainField, False), (lambda: bound(PlainField()), False)],
)
def test_it_has_an_encoding_where_the_canonical_field_has(canonical: Callable[[], RadianceField], expected: bool) -> None:
    assert has_encoding(bound(canonical())) == expected


def test_an_encoding_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadType, match=r"canonical: expected a field with encoded\(positions, times\), got PlainField"):
        bound(PlainField()).encoded(points(3)[0], torch.full((3,), 2.0))
    with pytest.raises(BadArgument, match="times: expected one for each of 3 positions, got None"):
        bound(hashed()).encoded(points(3)[0])
