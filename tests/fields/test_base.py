"""The box and the wishes of a field, given wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_nerf import FieldOutput, RadianceField, SceneBox
from lightning_nerf.checks import BadArgument, BadType

CUBE = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
NAN = float("nan")


class Fog(RadianceField):
    def density(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(positions))

    def forward(self, positions: torch.Tensor, directions: torch.Tensor) -> FieldOutput:
        return FieldOutput(self.density(positions), self.unit_positions(positions).clamp(0, 1))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (None, "scene_box: expected SceneBox, got NoneType"),
        (CUBE, "scene_box: expected SceneBox, got Tensor"),
        (SceneBox([[0, 0, 0], [1, 1, 1]]), "scene_box.aabb: expected a tensor, got list"),  # type: ignore[arg-type]
        (SceneBox(torch.zeros(6)), r"scene_box.aabb: expected shape \[2, 3\], got \[6\]"),
        (SceneBox(torch.zeros(2, 3)), "scene_box.aabb: expected a minimum corner and a maximum corner above it"),
        (SceneBox(CUBE.flip(0)), "scene_box.aabb: expected a minimum corner and a maximum corner above it"),
        (SceneBox(CUBE * NAN), "scene_box.aabb: expected a minimum corner and a maximum corner above it"),
        (SceneBox(CUBE * 3e38), "scene_box.aabb: expected sides between 1e-38 and 1e38"),
        (SceneBox(CUBE * 1e-40), "scene_box.aabb: expected sides between 1e-38 and 1e38"),
        (SceneBox(CUBE, "L2"), "scene_box.contraction: expected one of none, l2, linf, ndc, got 'L2'"),
    ],
)
def test_a_field_is_bound_to_a_box_with_volume(box: Any, message: str) -> None:
    field = Fog()
    with pytest.raises(BadArgument, match=f"^{message}"):
        field.bind(box)
    field.bind(SceneBox(CUBE.double()))
    assert field.unit_length == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("wants", "kind", "message"),
    [
        ("times", BadType, "Fog.wants: expected a list of names, got 'times'"),
        (None, BadType, "Fog.wants: expected a list of names, got None"),
        (5, BadType, "Fog.wants: expected a list of names, got 5"),
        (["time"], BadArgument, "Fog.wants: expected some of times, cameras, footprints, got 'time'"),
    ],
)
def test_wishes_that_are_none_are_named(
    wants: Any, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fog, "wants", wants)
    with pytest.raises(kind, match=f"^{message}"):
        Fog()


@pytest.mark.parametrize("index", [4, -1, 100])
def test_saved_weights_name_a_contraction_that_exists(index: int) -> None:
    field = Fog()
    field.bind(SceneBox(CUBE))
    state = field.state_dict() | {"contraction": torch.tensor(index, dtype=torch.int8)}
    with pytest.raises(BadArgument, match=f"contraction: expected 0 to 3, got {index}"):
        Fog().load_state_dict(state)


def test_the_state_of_a_field_without_a_scene_is_one_without_a_scene() -> None:
    field = Fog()
    field.load_state_dict(Fog().state_dict())
    with pytest.raises(RuntimeError, match="knows no scene box"):
        _ = field.scene_box
