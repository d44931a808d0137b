"""One argument of a proper call is spoilt: the call still works, or a ValueError says which argument is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.calls import CALLS
from tests.fuzz.strategies import INF, NAN, answer, fuzz, other_device, spaced
from tests.ops.harness import DEVICES

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
SHAPES = {
    "one dimension more": lambda t: t[None],
    "one less": lambda t: t[0] if t.ndim and len(t) else t,
    "a number": lambda t: t.flatten()[0] if t.numel() else t.new_zeros(()),
    "one entry less": lambda t: t[:-1] if t.ndim else t,
    "one more": lambda t: torch.cat([t, t[-1:]]) if t.ndim else t,
    "last one less": lambda t: t[..., :-1] if t.ndim else t,
    "last one more": lambda t: torch.cat([t, t[..., -1:]], -1) if t.ndim else t,
    "one entry": lambda t: t[:1] if t.ndim else t,
    "empty": lambda t: t[:0] if t.ndim else t,
    "nothing": lambda t: t.new_zeros(0),
    "turned": lambda t: t.mT if t.ndim >= 2 else t,
}
ALSO_CALLED = {
    # What functions that are arguments return goes under the name of the function.
    "rgbs": ["rgb_sigma_fn", "rgb_alpha_fn"],
    "sigmas": ["rgb_sigma_fn", "rgb_alpha_fn", "prop_sigma_fns"],
    "values": ["sigma_fn", "alpha_fn", "density_fn", "occ_eval_fn", "queries"],
    # Where NerfAcc's name is not the op's, either may stand.
    "vals": ["edges", "keys"],
    "ray_indices": ["query_rays"],
    "n_intervals_per_ray": ["n_samples"],
    "render_step_size": ["step_size"],
    "occ_thre": ["threshold"],
    "ema_decay": ["decay"],
}


@pytest.fixture(autouse=True, scope="module")
def every_warning() -> Iterator[None]:
    """Torch would say some things once per process, so that only the first place were found."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def spoilt(value: Any, device: str, *, alone: bool) -> dict[str, Any]:
    """All that may come in the place of a proper value."""
    if isinstance(value, Tensor):
        others = {"spaced": spaced(value)} if alone else {"spaced": spaced(value), "device": value.to(other_device(device))}
        return {
            **{str(dtype): value.to(dtype) for dtype in DTYPES},
            **{how: change(value) for how, change in SHAPES.items()},
            **others,
        }
    if isinstance(value, bool):
        return {"the other": not value}
    return {str(v): v for v in ([0, -1] if isinstance(value, int) else [0.0, -1.0, NAN, INF, -INF, 1e-45, 3e38])}


def call(name: str, device: str, chosen: list[tuple[str, str]]) -> None:
    """The call with some of its arguments spoilt."""
    function, arguments = CALLS[name](device)
    alone = sum(isinstance(a, Tensor) for a in arguments.values()) == 1
    changed = {argument: spoilt(arguments[argument], device, alone=alone)[how] for argument, how in chosen}
    names = [*arguments, *(n for key in arguments for n in ALSO_CALLED.get(key, []))]
    answer(names, lambda: function(**{**arguments, **changed}))


def choices(name: str) -> list[tuple[str, str]]:
    _, arguments = CALLS[name]("cpu")
    alone = sum(isinstance(a, Tensor) for a in arguments.values()) == 1
    return [(key, how) for key, value in arguments.items() for how in spoilt(value, "cpu", alone=alone)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_one_wrong_argument(device: str, name: str) -> None:
    wrong = []
    for choice in choices(name):
        try:
            call(name, device, [choice])
        except Exception as error:
            wrong.append((*choice, f"{type(error).__name__}: {error}"))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
@fuzz
@given(st.data())
def test_several_wrong_arguments(device: str, name: str, data: st.DataObject) -> None:
    """The earlier checks must not rest on the later ones."""
    some = data.draw(st.lists(st.sampled_from(choices(name)), min_size=1, max_size=3, unique_by=lambda c: c[0]))
    call(name, device, some)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_proper_calls_work(device: str, name: str) -> None:
    function, arguments = CALLS[name](device)
    function(**arguments)
    function, arguments = CALLS[name](device)
    function(**{k: spaced(a) if isinstance(a, Tensor) else a for k, a in arguments.items()})
