"""One argument of a proper call is of another type: the call still works, or an error says which argument that is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import Tensor

from tests.fuzz.calls import CALLS
from tests.fuzz.strategies import bounded
from tests.fuzz.test_wrong_arguments import ALSO_CALLED

OTHERS = ("1", None, object(), ["1"])


def wrong_types(value: Any) -> list[Any]:
    """Numbers may be of another kind, and tensors of none."""
    if isinstance(value, Tensor):
        return [*OTHERS, 0.5, value.tolist()]
    return [*OTHERS, 0.5] if isinstance(value, int) and not isinstance(value, bool) else list(OTHERS)


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("composite")])
def test_one_argument_of_another_type(name: str) -> None:
    for argument, value in CALLS[name]("cpu")[1].items():
        for other in wrong_types(value):
            function, arguments = CALLS[name]("cpu")
            names = {*arguments, *(n for key in arguments for n in ALSO_CALLED.get(key, []))}
            try:
                with bounded():
                    function(**{**arguments, argument: other})
            except (ValueError, TypeError) as error:
                told = re.findall(r"\w+", str(error).split(":")[0])
                assert names & set(told), f"{argument} = {other!r}: {error}"  # noqa: PT017
