from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_nerf.capabilities import has, states
from lightning_nerf.checks import BadType
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules.optimizers import adam
from lightning_nerf.renderers.volume import VolumeRenderer


class Part:
    @states("captured", "shared")
    def update(self, value: int) -> int:
        """Twice the value."""
        return 2 * value

    def place(self) -> None: ...


class Heir(Part):
    pass


class Overriding(Part):
    def update(self, value: int) -> int:
        return super().update(value) + 1


class Again(Part):
    @states("shared")
    def update(self, value: int) -> int:
        return 2 * value


class WithoutGradient(Part):
    @torch.no_grad()
    @states("shared")
    def place(self) -> None: ...


def test_a_stated_method_is_the_method() -> None:
    assert Part().update(2) == 4
    assert Part.update.__name__ == "update"
    assert Part.update.__doc__ == "Twice the value."


def test_a_method_has_what_it_states() -> None:
    for method in (Part().update, Part.update, Heir().update):
        assert has(method, "captured")
        assert has(method, "shared")
        assert not has(method, "capture")
    assert not has(Part().place, "captured")


def test_an_override_states_nothing_by_accident() -> None:
    assert not has(Overriding().update, "captured")
    assert not has(Overriding().update, "shared")
    assert has(super(Overriding, Overriding()).update, "captured")  # what it calls still does


def test_an_override_may_state_what_it_has() -> None:
    assert has(Again().update, "shared")
    assert not has(Again().update, "captured")
    assert has(Part().update, "captured")
    assert has(WithoutGradient().place, "shared")
    assert not has(Part().place, "shared")


def test_a_method_set_on_an_object_states_nothing() -> None:
    part = Part()
    part.update = lambda value: value  # type: ignore[method-assign]
    assert not has(part.update, "captured")
    assert has(Part().update, "captured")


def test_anything_that_is_called_may_be_asked() -> None:
    assert not has(len, "captured")
    assert not has(lambda: None, "captured")
    assert not has(torch.optim.Adam, "averages")
    assert has(adam, "averages")


def test_parts_of_the_library_state_what_kernels_rely_on() -> None:
    """And a subclass that overrides one of these methods gets the general path."""
    grid, field, renderer = OccupancyGrid(resolution=8), InstantNGPField(n_levels=2, log2_table_size=10), VolumeRenderer()
    for method, capability in [
        (grid.place, "prunes"),
        (grid.update, "captured"),
        (grid.update, "shared"),
        (grid.cells, "captured"),
        (field.density, "fused"),
        (field.forward, "fused"),
        (renderer.forward, "quadrature"),
    ]:
        assert has(method, capability), (method, capability)

    class Own(OccupancyGrid):
        def place(self, *args: object, **kwargs: object) -> object:
            return super().place(*args, **kwargs)  # type: ignore[arg-type]

    class OwnRenderer(VolumeRenderer):
        def forward(self, *args: object, **kwargs: object) -> object:
            return super().forward(*args, **kwargs)  # type: ignore[arg-type]

    assert grid.pruning is not None
    assert Own(resolution=8).pruning is None
    assert renderer.is_plain
    assert not OwnRenderer().is_plain


@pytest.mark.parametrize("kind", [property, classmethod])
def test_what_lookup_would_not_find_is_not_stated(kind: Any) -> None:
    def part(self: object) -> int:
        return 1

    with pytest.raises(BadType, match=f"states: expected a plain function, below any other decorator, got {kind.__name__}"):
        states("captured")(kind(part))

    class Part:
        inner = staticmethod(states("captured")(part))

    assert has(Part.inner, "captured")
    assert has(Part().inner, "captured")


def test_capabilities_have_names() -> None:
    with pytest.raises(BadType, match="capabilities: expected names, as in @states"):
        states(lambda: 1)  # type: ignore[arg-type]
