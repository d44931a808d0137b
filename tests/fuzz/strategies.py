"""Inputs that nobody should pass, and what every public function must make of them.

The contract: outputs of the documented shapes and dtypes, finite where the inputs are or what is not finite is declared
harmless, with gradients that are finite too; or a ValueError, of a wrong type a TypeError, that names the argument. Never a
crash, a hang, or an error from deep inside. ``LIGHTNING_NERF_FUZZ_EXAMPLES`` sets the number of examples per test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

NAN, INF = float("nan"), float("inf")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDICES = (torch.int64, torch.int32)

STRANGE = (NAN, INF, -INF, -1.0, -0.0, 0.0, 1e-45, 1e-38, 1e-3, 0.5, 1.0, 1.5, 30.0, 1e30, 3e38)
"""Densities, alphas and occupancies: all of these are declared harmless."""

TIMES = (0.0, 1e-45, 1e-7, 0.1, 0.1, 0.5, 1.0, 1.0 + 2**-23, 7.0, 1e6, 1e9, -1.0)
"""Finite limits of intervals; between two of them lie intervals without length, reversed and huge ones."""

SECONDS = 20.0  # an example takes milliseconds

fuzz = settings(
    max_examples=int(os.environ.get("LIGHTNING_NERF_FUZZ_EXAMPLES", "20")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block takes longer; ends the process with a traceback where it would never end."""
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=sys.__stderr__)
    begin = time.monotonic()
    try:
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what kernels did wrong is told here, not in the next example
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.monotonic() - begin < seconds


def answer(names: Sequence[str], call: Callable[[], Any]) -> Any:
    """What the call returns, or None where it was refused by an error that names one of the arguments."""
    try:
        with bounded():
            return call()
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if not set(re.findall(r"\w+", refusal.split(":")[0])) & set(names):
        raise AssertionError(f"which argument? {refusal}")
    return None


def leaves(value: Any) -> list[Tensor]:
    """All tensors in a result."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else []


def assert_finite(*values: Any) -> None:
    for leaf in leaves(values):
        assert not leaf.is_floating_point() or leaf.isfinite().all(), leaf


def assert_like(value: Tensor, shape: Sequence[int], dtype: torch.dtype, device: str) -> None:
    """Finite and as documented."""
    assert tuple(value.shape) == tuple(shape)
    assert value.dtype == dtype
    assert value.device.type == device
    assert_finite(value)


def assert_finite_grads(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Every output has a grad_fn; one of what is in them reaches every input, and is finite."""
    for output in outputs:
        assert output.grad_fn is not None
    total = torch.stack([output.double().sum() for output in outputs]).sum()
    for i, grad in zip(inputs, torch.autograd.grad(total, inputs, allow_unused=True), strict=True):
        if grad is not None:
            assert (grad.shape, grad.dtype, grad.device) == (i.shape, i.dtype, i.device)
            # float16 ends at 65504: a gradient beyond is infinite there, as by any cast, but never NaN.
            assert not grad.isnan().any() if i.dtype == torch.float16 else grad.isfinite().all(), grad


def spaced(values: Tensor) -> Tensor:
    """The same values, not contiguous."""
    room = torch.stack([values, values], -1)
    return room[..., 0]


def other_device(device: str) -> str:
    return "meta" if device == "cpu" else "cpu"


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int],
    values: Sequence[float],
    device: str,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> Tensor:
    """Entries from ``values``, contiguous or not."""
    n = torch.Size(shape).numel()
    entries = draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))
    result = torch.tensor(entries, dtype=torch.float32).view(tuple(shape)).to(device, draw(st.sampled_from(dtypes)))
    return spaced(result) if draw(st.booleans()) else result


@st.composite
def counts(draw: st.DrawFn, most: int = 6) -> list[int]:
    """Samples of each ray: no rays, rays without samples, and some."""
    return draw(st.lists(st.integers(0, most), max_size=4))


def indices_of(counts: Sequence[int], device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """The ray of each packed sample."""
    rays = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return rays.to(device, dtype)


def offsets_of(counts: Sequence[int], device: str) -> Tensor:
    return torch.tensor([0, *torch.tensor(counts, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32, device=device)


def packed_info_of(counts: Sequence[int], device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    sizes = torch.tensor(counts, dtype=torch.int64)
    return torch.stack([sizes.cumsum(0) - sizes, sizes], 1).to(device, dtype)
