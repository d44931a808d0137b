from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops import library
from lightning_nerf.ops.adam import BAD, ENDED, NOW, SKIPPED, adam_, adam_begin_, begin_reference, make_control, reference
from tests.ops.harness import DEVICES, assert_detected, rand

Problem = dict[str, Any]
BETAS = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-15}
SIZES = {
    "none": [],
    "empty tensors": [0, 0],
    "one element": [1],
    "tails": [1023, 3, 0, 2048, 2049, 4097],
    "a table and its networks": [70_001, 512, 1024, 4096, 192],
    "more than a launch takes": [5 + i for i in range(70)],
}
OPTIONS: dict[str, Problem] = {
    "plain": {},
    "everything": {"weight_decay": 0.01, "ema_decay": 0.95, "halves": True, "grad_scale": 1024.0, "zero_grads": True},
    "average now and then": {"ema_decay": 0.9, "ema_every": 4},
    "average of the last third": {"ema_decay": 0.99, "ema_share": 0.3},
    "no memory": {"beta1": 0.0, "beta2": 0.0, "ema_decay": 0.0, "eps": 1e-8},
    "skipped by the scaler": {"ema_decay": 0.95, "halves": True, "zero_grads": True, "found_inf": 1.0},
    "not skipped by the scaler": {"found_inf": 0.0},
    "rate on the device": {"lr_tensor": True},
}


def problem(
    sizes: list[int], device: str, *, t: int = 3, ema_decay: float | None = None, halves: bool = False, offset: int = 0
) -> Problem:
    """Lists of tensors in mid-training. ``offset`` elements before each make its address unaligned."""

    def tensors(seed: int, low: float = -1.0, scale: float = 1.0) -> list[Tensor]:
        whole = [scale * rand(n + offset, seed=seed + i, low=low) for i, n in enumerate(sizes)]
        return [w.to(device)[offset:] for w in whole]

    return {
        "params": tensors(0),
        "grads": tensors(100, scale=1e-3),
        "exp_avgs": tensors(200, scale=1e-3),
        "exp_avg_sqs": tensors(300, low=0.0, scale=1e-6),
        "emas": tensors(400) if ema_decay is not None else [],
        "halves": [torch.zeros(n if i != 1 else 0, dtype=torch.float16, device=device) for i, n in enumerate(sizes)]
        if halves
        else [],
        "steps": [torch.tensor(float(t - 1 + i % 3), device=device) for i in range(len(sizes))],
        "control": make_control(device),
    }


def copy(p: Problem) -> Problem:
    return {name: [t.clone() for t in v] if isinstance(v, list) else v.clone() for name, v in p.items()}


def scalar(value: float | None, device: str) -> Tensor | None:
    return None if value is None else torch.tensor(value, device=device)


def step(p: Problem, begin: Callable[..., None], update: Callable[..., None], **options: Any) -> None:
    """One step by raw ops or references."""
    device = p["control"].device
    o = {
        "lr": 0.01,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
        "ema_share": 1.0,
        "ema_every": 1,
        "zero_grads": False,
        **BETAS,
        **options,
    }
    begin(p["grads"], p["steps"], p["control"], True)
    lists = [p[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas", "halves", "steps", "control")]
    scalars = [scalar(o.get(name), device) for name in ("lr_tensor", "grad_scale", "found_inf")]
    numbers = ("lr", "beta1", "beta2", "eps", "weight_decay", "ema_decay", "ema_share", "ema_every", "zero_grads")
    update(*lists, *scalars, *(o[name] for name in numbers), True)


def assert_same(actual: Problem, expected: Problem, *, rtol: float, atol: float) -> None:
    for name, values in expected.items():
        half = name == "halves"
        # Half a unit in the last place of fp16 (2^-11) where the float32 values straddle a rounding boundary.
        torch.testing.assert_close(
            actual[name],
            values,
            rtol=2**-10 if half else rtol,
            atol=2**-24 if half else atol,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def check(update: Callable[..., None], sizes: list[int], options: Problem, device: str, *, offset: int = 0) -> None:
    given = {name: options[name] for name in ("ema_decay", "halves") if name in options}
    numbers = {name: v for name, v in options.items() if name != "halves"}
    if numbers.pop("lr_tensor", False):
        numbers |= {"lr_tensor": 0.01, "lr": math.nan}
    actual = problem(sizes, device, offset=offset, **given)
    expected = copy(actual)
    pointers = [t.data_ptr() for t in actual["params"]]
    for _ in range(3):
        step(actual, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, **numbers)
        step(expected, begin_reference, update, **numbers)
    # About ten float32 operations per element and step, the update at most a few times the rate (0.01): 2^-24 * 10 * 3 of
    # it, plus the rounding of weights below 1.
    assert_same(actual, expected, rtol=2e-6, atol=3e-7)
    assert [t.data_ptr() for t in actual["params"]] == pointers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernel_is_that_of_the_reference(device: str, sizes: str, options: str) -> None:
    check(reference, SIZES[sizes], OPTIONS[options], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_tensors(device: str, offset: int) -> None:
    check(reference, SIZES["tails"], OPTIONS["everything"], device, offset=offset)


def test_the_comparison_detects_a_missing_bias_correction() -> None:
    def mutated(*args: Any) -> None:
        steps = [s.clone() for s in args[6]]
        late = [torch.full_like(s, 1e6) for s in steps]
        reference(*args[:6], late, *args[7:])

    assert_detected(lambda: check(mutated, [100], OPTIONS["plain"], "cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    p = problem([5, 3], device, ema_decay=0.9, halves=True)
    begin = torch.ops.lightning_nerf.adam_begin_.default
    torch.library.opcheck(begin, (p["grads"], p["steps"], p["control"], True))
    lists = [p[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas", "halves", "steps", "control")]
    numbers = (0.01, 0.9, 0.99, 1e-15, 0.0, 0.95, 0.5, 1, True, True)
    torch.library.opcheck(torch.ops.lightning_nerf.adam_.default, (*lists, None, scalar(2.0, device), None, *numbers))


@pytest.mark.filterwarnings("ignore:lightning-nerf runs its pure-torch reference")
def test_reference_works_in_place_through_the_dispatcher() -> None:
    actual = problem([5, 3], "cpu", ema_decay=0.9, halves=True)
    expected = copy(actual)

    def through_dispatcher(name: str) -> Callable[..., None]:
        op = getattr(torch.ops.lightning_nerf, name).default
        return lambda *args: op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)

    step(actual, through_dispatcher("adam_begin_"), through_dispatcher("adam_"), ema_decay=0.9)
    step(expected, begin_reference, reference, ema_decay=0.9)
    assert_same(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("which", "index"), [(0, 0), (0, 9_998), (0, 9_999), (1, 4095), (2, 1)])
def test_a_step_with_a_non_finite_gradient_changes_nothing(device: str, value: float, which: int, index: int) -> None:
    p = problem([10_000, 4096, 2], device, ema_decay=0.9)
    step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, ema_decay=0.9)
    before = copy(p)
    p["grads"][which][index] = value
    step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, ema_decay=0.9, zero_grads=True)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "emas", "steps"):
        torch.testing.assert_close(p[name], before[name], rtol=0, atol=0)
    assert all(not g.any() for g in p["grads"])
    assert [int(p["control"][i]) for i in (ENDED, NOW, BAD, SKIPPED)] == [2, 2, 2, 1]
    p["grads"] = before["grads"]
    step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, ema_decay=0.9)
    assert int(p["control"][SKIPPED]) == 1
    assert not torch.equal(p["params"][0], before["params"][0])


@pytest.mark.parametrize("device", DEVICES)
def test_large_finite_gradients_are_finite(device: str) -> None:
    p = problem([5000], device)
    p["grads"][0].fill_(torch.finfo(torch.float32).max)
    adam_begin_(p["grads"], p["steps"], p["control"])
    assert int(p["control"][BAD]) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_average_is_the_mean_with_exponential_weights(device: str) -> None:
    """sum of d^(t - i) p_i over the steps i = 1 .. t, divided by the sum of its weights."""
    p, decay = problem([300], device, t=1, ema_decay=0.8), 0.8
    history: list[Tensor] = []
    for i in range(30):
        p["grads"] = [rand(300, seed=i, low=-1.0).to(device)]
        step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, ema_decay=decay, lr=0.1)
        history.append(p["params"][0].double())
        weights = [decay ** (len(history) - 1 - k) for k in range(len(history))]
        mean = sum(w * h for w, h in zip(weights, history, strict=True)) / sum(weights)
        torch.testing.assert_close(p["emas"][0].double(), mean, rtol=0, atol=1e-6)  # values below 4, 30 roundings of 2^-24


@pytest.mark.parametrize("device", DEVICES)
def test_half_is_the_rounded_weight_also_in_a_skipped_step(device: str) -> None:
    for found_inf in (None, 1.0):
        p = problem([5000, 7, 4096], device, halves=True)
        step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, found_inf=found_inf)
        assert torch.equal(p["halves"][0], p["params"][0].half())
        assert torch.equal(p["halves"][2], p["params"][2].half())


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            p = problem([200_000, 33], "cpu", ema_decay=0.9, halves=True)
            step(p, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_, ema_decay=0.9)
            results.append(p)
    finally:
        torch.set_num_threads(before)
    assert_same(results[0], results[1], rtol=0, atol=0)


def test_bad_arguments_are_named() -> None:
    def call(**changes: Any) -> None:
        p: Problem = {**problem([4], "cpu"), **changes}
        lists = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "control")
        options = {name: v for name, v in p.items() if name not in lists}
        adam_(*(p[name] for name in lists), **{"lr": 0.1, **BETAS, **options})

    with pytest.raises(ValueError, match=r"control: expected dtype torch.int32, got torch.float32"):
        call(control=torch.zeros(4))
    with pytest.raises(ValueError, match="exp_avgs: expected 1 tensors, as many as grads, got 0"):
        call(exp_avgs=[])
    with pytest.raises(ValueError, match=r"params\[0\]: expected shape \[4\], as its gradient, got \[5\]"):
        call(params=[torch.zeros(5)])
    with pytest.raises(ValueError, match=r"grads\[0\]: expected contiguous torch.float32 on cpu, got torch.float64"):
        call(grads=[torch.zeros(4, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"emas\[0\]: expected contiguous"):
        call(emas=[torch.zeros(8)[::2]], ema_decay=0.9)
    with pytest.raises(ValueError, match="ema_decay"):
        call(emas=[torch.zeros(4)], ema_decay=1.0)
    with pytest.raises(ValueError, match=r"halves: expected dtype torch.float16, got torch.float32"):
        call(halves=[torch.zeros(4)])
    with pytest.raises(ValueError, match=r"found_inf: expected shape \[\], got \[1\]"):
        call(found_inf=torch.zeros(1))
    with pytest.raises(ValueError, match=r"steps: expected shape \[\], got \[1\]"):
        adam_begin_([torch.zeros(4)], [torch.zeros(1)], make_control())


@pytest.mark.skipif(not library.loaded, reason="no compiled library")
def test_the_launcher_checks_too() -> None:
    p = problem([4], "cpu")
    with pytest.raises(RuntimeError, match="exp_avgs has 3 elements, not 4"):
        step({**p, "exp_avgs": [torch.zeros(3)]}, torch.ops.lightning_nerf.adam_begin_, torch.ops.lightning_nerf.adam_)
