"""What a field that wants times knows of the data's range of them."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from lightning_nerf.checks import BadArgument
from lightning_nerf.fields import DeformedField, RadianceField, SpaceTimeField
from lightning_nerf.scene_box import SceneBox
from tests.estimators.test_times import TimedField
from tests.executors.fits import PlainField

FIRST, LAST = 2.0, 5.0
SMALL: dict[str, Any] = {
    "n_levels": 2,
    "log2_table_size": 8,
    "max_resolution": 32,
    "time_log2_table_size": 8,
    "time_max_resolution": 32,
}
FIELDS = [TimedField, lambda: DeformedField(PlainField(), width=16), lambda: SpaceTimeField(**SMALL)]


def bound(field: RadianceField) -> Any:
    field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    field.bind_times(FIRST, LAST)
    return field


@pytest.mark.parametrize(
    ("first", "last", "times", "expected"),
    [
        (FIRST, LAST, [2.0, 3.5, 5.0, 8.0, -1.0], [0.0, 0.5, 1.0, 2.0, -1.0]),
        (-1.0, 1.0, [-1.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
        (0.3, 0.3, [0.3, 0.0, 9.0], [0.0, 0.0, 0.0]),  # a single time
    ],
)
def test_times_go_from_0_at_the_first_to_1_at_the_last(
    first: float, last: float, times: list[float], expected: list[float]
) -> None:
    field = TimedField()
    field.bind_times(first, last)
    torch.testing.assert_close(field.unit_times(torch.tensor(times)), torch.tensor(expected))


def test_the_first_time_is_exactly_0() -> None:
    field = TimedField()
    for first in torch.rand(100, dtype=torch.float64).tolist():
        field.bind_times(first, first + 0.7)
        assert float(field.unit_times(torch.tensor([first], dtype=torch.float32))) == 0.0


def test_a_field_that_was_told_no_range_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"TimedField knows no range of times: call bind_times\(first, last\) first"):
        TimedField().unit_times(torch.zeros(1))
    with pytest.raises(RuntimeError, match="PlainField keeps no times: name 'times' in wants"):
        PlainField().unit_times(torch.zeros(1))


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (1.0, 0.0, "first, last: expected first <= last, got 1.0, 0.0"),
        (float("nan"), 1.0, "first: expected a number in"),
        (0.0, float("inf"), "last: expected a number in"),
        ("0", 1.0, "first: expected a number in"),
        (-3e38, 3e38, r"last - first: expected a number in \[0, inf\), got 6e\+38"),
    ],
)
def test_what_is_no_range_is_refused(first: float, last: float, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        TimedField().bind_times(first, last)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (None, "times: expected a tensor, got NoneType"),
        (0.5, "times: expected a tensor, got float"),
        (torch.tensor(0.5), r"times: expected shape \[(N|4)\], got \[\]"),
        (torch.zeros(4, 1), r"times: expected shape \[(N|4)\], got \[4, 1\]"),
        (torch.zeros(4, dtype=torch.bool), "times: expected dtype .*, got torch.bool"),
    ],
)
@pytest.mark.parametrize("made", FIELDS)
def test_times_of_a_wrong_shape_or_type_are_refused(made: Any, times: Any, message: str) -> None:
    field = bound(made())
    with pytest.raises(BadArgument, match=message):
        field.unit_times(times)
    if not isinstance(field, TimedField):  # which asks for no unit times
        with pytest.raises(BadArgument, match=message):
            field(torch.zeros(4, 3), torch.ones(4, 3), times=times)


@pytest.mark.parametrize("made", FIELDS[1:])
def test_times_of_other_points_are_refused(made: Any) -> None:
    field = bound(made())
    with pytest.raises(BadArgument, match=r"times: expected shape \[4\], got \[1\]"):
        field.density(torch.zeros(4, 3), times=torch.zeros(1))


@pytest.mark.parametrize("made", FIELDS[1:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_times_may_have_another_type_than_positions(made: Any, dtype: torch.dtype) -> None:
    field, times = bound(made()), torch.tensor([2.0, 3.0, 4.0, 5.0])
    positions = torch.rand(4, 3)
    expected = field.density(positions, times=times)
    assert torch.equal(field.density(positions, times=times.to(dtype)), expected)


def test_a_static_field_keeps_its_state_and_takes_no_notice() -> None:
    field = PlainField()
    names = set(field.state_dict())
    field.bind_times(FIRST, LAST)
    assert set(field.state_dict()) == names
    assert not any("time" in name for name in names)
    assert not field.knows_times


def test_the_range_travels_with_the_weights() -> None:
    field = TimedField()
    assert not field.knows_times
    field.bind_times(FIRST, LAST)
    torch.save(field.state_dict(), file := io.BytesIO())
    file.seek(0)
    other = TimedField()
    other.load_state_dict(torch.load(file, weights_only=True))
    for each in (other, copy.deepcopy(field)):
        assert each.knows_times
        assert float(each.unit_times(torch.tensor([3.5]))) == 0.5
    unknown = TimedField()
    other.load_state_dict(unknown.state_dict())
    assert not other.knows_times


def test_weights_of_a_version_without_a_range_are_taken() -> None:
    weights = TimedField().state_dict()
    del weights["time_range"]
    field = TimedField()
    field.load_state_dict(weights)
    assert not field.knows_times


@pytest.mark.parametrize("times", [[1.0, 0.0], [0.0, float("inf")], [float("nan"), 1.0], [-3e38, 3e38]])
def test_weights_with_another_than_a_range_are_refused(times: list[float]) -> None:
    weights = {**TimedField().state_dict(), "time_range": torch.tensor(times)}
    with pytest.raises(BadArgument, match="time_range: expected a first and a last time"):
        TimedField().load_state_dict(weights)


def test_an_instance_may_say_what_it_wants_before_it_is_made() -> None:
    class Chosen(PlainField):
        def __init__(self, timed: bool) -> None:
            if timed:
                self.wants = ("times",)
            super().__init__()

    assert Chosen(True).keeps_times
    assert not Chosen(False).keeps_times
