from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_nerf.optim import FusedAdam, HalfMirror
from tests.ops.harness import DEVICES, rand

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15}
SHAPES = [(3001, 2), (16, 32), (7,), (1,)]


def parameters(device: str) -> list[nn.Parameter]:
    return [nn.Parameter(rand(*shape, seed=i, low=-1.0).to(device)) for i, shape in enumerate(SHAPES)]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "name": "field"}, {"params": params[2:], "lr": 3e-3, "weight_decay": 0.1, "eps": 1e-8}]


def loss_of(params: list[nn.Parameter], step: int) -> Tensor:
    """Noisy quadratics; a tenth of the entries of the first parameter have no gradient in a step, as in a hash table."""
    total = torch.zeros((), device=params[0].device)
    for i, p in enumerate(params):
        noise = rand(*p.shape, seed=1000 * step + i, low=-1.0).to(p)
        mask = (rand(*p.shape, seed=7 * step) < 0.9).to(p) if i == 0 else 1.0
        total = total + ((p - 0.5 + noise).square() * mask).sum()
    return total


def train(
    make: Callable[[Any], Optimizer], device: str, n_steps: int = 100, scaler: bool = False, bad: tuple[int, ...] = ()
) -> tuple[list[nn.Parameter], Optimizer, LambdaLR]:
    params = parameters(device)
    optimizer = make(groups(params))
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, 0.01 + step / 20) * 0.98**step)
    amp = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=30, enabled=scaler)
    for step in range(n_steps):
        optimizer.zero_grad()
        amp.scale(loss_of(params, step)).backward()
        if step in bad:
            params[step % 3].grad.view(-1)[0] = math.nan if step % 2 else math.inf  # type: ignore[union-attr]
        amp.step(optimizer)
        amp.update()
        scheduler.step()
    return params, optimizer, scheduler


def assert_close(actual: list[nn.Parameter], expected: list[nn.Parameter]) -> None:
    # Both round some ten float32 operations per step; the update is at most a few times 1e-2, so a step adds at most
    # 10 * 2^-24 * 3e-2 and one rounding of a weight below 2: 1.4e-7. After 100 steps, were they all of one sign:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1.4e-5)


def fused(params: Any) -> FusedAdam:
    return FusedAdam(params, **OPTIONS)


def adam(params: Any) -> Adam:
    return Adam(params, **OPTIONS)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_adam(device: str) -> None:
    """Several groups, weight decay, a schedule, entries whose gradient is zero."""
    ours, optimizer, _ = train(fused, device)
    theirs, expected, _ = train(adam, device)
    assert_close(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[p][name], expected.state[q][name], rtol=1e-4, atol=1e-5)
        assert optimizer.state[p]["step"] == 100
    assert isinstance(optimizer, FusedAdam)
    assert int(optimizer.skipped) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_equals_adam_under_a_gradient_scaler(device: str) -> None:
    """Which skips two steps, grows its scale in between, and hands its scale to the kernel."""
    bad = (17, 60)
    ours, optimizer, _ = train(fused, device, scaler=True, bad=bad)
    theirs, expected, _ = train(lambda p: Adam(p, **OPTIONS, fused=True), device, scaler=True, bad=bad)
    assert_close(ours, theirs)
    assert float(optimizer.state[ours[0]]["step"]) == float(expected.state[theirs[0]]["step"]) == 98
    assert isinstance(optimizer, FusedAdam)
    assert int(optimizer.skipped) == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_non_finite_step_is_as_if_it_had_no_gradient(device: str) -> None:
    """Bit for bit an Adam that was not called then; the schedule goes on."""
    bad = (0, 3, 4, 50)
    ours, optimizer, scheduler = train(fused, device, bad=bad)

    class Absent(FusedAdam):
        calls = -1

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return None if self.calls in bad else super().step(closure)

    theirs, _, other = train(lambda p: Absent(p, **OPTIONS), device)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert scheduler.get_last_lr() == other.get_last_lr()
    assert isinstance(optimizer, FusedAdam)
    assert int(optimizer.skipped) == 4
    poisoned, _, _ = train(lambda p: FusedAdam(p, **OPTIONS, skip_non_finite=False), device, 5, bad=(3,))
    assert not torch.isfinite(poisoned[0]).all()


def test_clipping_between_unscaling_and_step() -> None:
    results = []
    for make in (fused, lambda p: Adam(p, **OPTIONS, fused=True)):
        params = parameters("cpu")
        optimizer, amp = make(groups(params)), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(10):
            optimizer.zero_grad()
            amp.scale(loss_of(params, step)).backward()
            amp.unscale_(optimizer)
            nn.utils.clip_grad_norm_(params, 0.1)
            amp.step(optimizer)
            amp.update()
        results.append(params)
    assert_close(results[0], results[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("via", ["state_dict", "file", "pickle", "deepcopy"])
def test_state_survives(device: str, via: str, tmp_path: Any) -> None:
    """Ten steps, a copy of everything, ten more: the bits of twenty."""

    def make(params: Any) -> FusedAdam:
        return FusedAdam(params, **OPTIONS, ema_decay=0.9)

    def go_on(params: list[nn.Parameter], optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            loss_of(params, step).backward()
            if step == 5:
                params[0].grad[0] = math.nan  # type: ignore[index]
            optimizer.step()

    whole = parameters(device)
    straight = make(groups(whole))
    go_on(whole, straight, 0, 20)

    params = parameters(device)
    optimizer = make(groups(params))
    go_on(params, optimizer, 0, 10)
    if via == "deepcopy":
        resumed_params, resumed = copy.deepcopy((params, optimizer))
    elif via == "pickle":
        torch.save((params, optimizer), tmp_path / "x.pt")
        resumed_params, resumed = torch.load(tmp_path / "x.pt", weights_only=False)
    else:
        resumed_params = [nn.Parameter(p.detach().clone()) for p in params]
        resumed = make(groups(resumed_params))
        state = optimizer.state_dict()
        if via == "file":
            torch.save(state, tmp_path / "x.pt")
            state = torch.load(tmp_path / "x.pt", weights_only=True, map_location="cpu")
        resumed.load_state_dict(state)
        go_on(params, optimizer, 10, 12)  # the original must not write into what was loaded
    go_on(resumed_params, resumed, 10, 20)
    torch.testing.assert_close(resumed_params, whole, rtol=0, atol=0)
    for p, q in zip(resumed_params, whole, strict=True):
        torch.testing.assert_close(resumed.state[p], straight.state[q], rtol=0, atol=0)
    assert int(resumed.skipped) == 1
    assert [g["ema_decay"] for g in resumed.param_groups] == [0.9, 0.9]


@pytest.mark.parametrize("adam_options", [{}, {"fused": True}])
def test_takes_over_the_state_of_adam(adam_options: dict[str, bool]) -> None:
    theirs, expected, _ = train(lambda p: Adam(p, **OPTIONS, **adam_options), "cpu", 10)
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = FusedAdam(groups(ours), **OPTIONS, ema_decay=0.9)
    optimizer.load_state_dict(expected.state_dict())
    for params, o in ((theirs, expected), (ours, optimizer)):
        o.zero_grad()
        loss_of(params, 10).backward()
        o.step()
    assert_close(ours, theirs)
    assert optimizer.state[ours[0]]["step"] == 11
    assert len(optimizer.averaged()) == 4


@pytest.mark.parametrize("device", DEVICES)
def test_average_is_of_the_weights_after_each_step(device: str) -> None:
    params = parameters(device)
    optimizer, history = FusedAdam(groups(params), **OPTIONS, ema_decay=0.95), []
    for step in range(1, 40):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()
        history.append(params[0].detach().double())
        weights = [0.95 ** (step - 1 - k) for k in range(step)]
        mean = sum(w * h for w, h in zip(weights, history, strict=True)) / sum(weights)
        # Weights below 2, one rounding of 2^-24 per step and operation.
        torch.testing.assert_close(optimizer.averaged()[params[0]].double(), mean, rtol=0, atol=40 * 3 * 2.0**-24)


@pytest.mark.parametrize("device", DEVICES)
def test_writes_the_half_copy_and_says_so(device: str) -> None:
    params = parameters(device)
    mirror = HalfMirror.made_for(params[0])
    copy = mirror.current(params[0])
    optimizer, versions = fused(groups(params)), []
    for step in range(3):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()
        assert torch.equal(copy, params[0].half())
        assert mirror.is_current(params[0])
        assert mirror.copy is copy
        versions.append([p._version for p in params])
    assert all(b > a for a, b in zip(versions[0], versions[1], strict=True))  # autograd and caches hear of the step


@pytest.mark.parametrize("device", DEVICES)
def test_zero_grads(device: str) -> None:
    params = parameters(device)
    optimizer = fused(groups(params))
    optimizer.zero_grads = True
    loss_of(params, 0).backward()
    params[0].grad = params[0].grad.t().contiguous().t()  # type: ignore[union-attr]
    optimizer.step()
    assert all(p.grad is not None and not p.grad.any() for p in params)


def test_parameters_without_gradient_are_left_alone() -> None:
    params = parameters("cpu")
    optimizer = FusedAdam(groups(params), **OPTIONS, ema_decay=0.9)
    assert optimizer.step() is None  # nothing has a gradient
    params[1].sum().backward()
    before = [p.detach().clone() for p in params]
    assert float(optimizer.step(lambda: torch.tensor(3.0))) == 3.0
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [True, False, True, True]
    assert list(optimizer.averaged()) == [params[1]]


def test_a_late_parameter_counts_its_own_steps() -> None:
    results = []
    for make in (fused, adam):
        params = parameters("cpu")
        optimizer = make(params)
        for step in range(10):
            optimizer.zero_grad()
            loss_of(params[: 2 + step // 5], step).backward()
            optimizer.step()
        results.append(params)
    assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr: expected a number in \[0, inf\), got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]: expected a number in \[0, 1\), got 1.0"),
        ({"eps": -1.0}, "eps: expected a number"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number in"),
        ({"ema_every": 0}, "ema_every: expected an integer from 1"),
        ({"ema_share": 0.0}, r"ema_share: expected a number in \(0, 1\]"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedAdam([nn.Parameter(torch.zeros(2))], **options)


def test_bad_parameters_are_named() -> None:
    for dtype in (torch.float16, torch.complex64, torch.float64):
        with pytest.raises(ValueError, match=rf"params\[1\] of group 0: expected torch.float32 .* got {dtype}"):
            FusedAdam([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=dtype))])
    with pytest.raises(ValueError, match=r"params\[0\] of group field: expected a dense contiguous tensor"):
        FusedAdam([{"params": [nn.Parameter(torch.zeros(4, 4).t()[:2])], "name": "field"}])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="grad: expected a dense gradient"):
        FusedAdam(table.parameters()).step()


# -- on a GPU ------------------------------------------------------------------------------------------------------------


def captured(rates: list[float], n_eager: int = 3) -> tuple[list[nn.Parameter], FusedAdam]:
    """A few eager steps, then replays of one captured step whose rate is a tensor; gradients arrive in place."""
    params = parameters("cuda")
    HalfMirror.made_for(params[0]).current(params[0])
    optimizer = FusedAdam(params, **OPTIONS, ema_decay=0.9)
    for p in params:
        p.grad = torch.zeros_like(p)
    graph, rate = None, torch.zeros((), device="cuda")
    for step, lr in enumerate(rates):
        for i, p in enumerate(params):
            p.grad.copy_(rand(*p.shape, seed=31 * step + i, low=-1.0))  # type: ignore[union-attr]
        if step == 7:
            params[1].grad[0, 0] = math.inf  # type: ignore[index]
        if step < n_eager:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            continue
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            optimizer.param_groups[0]["lr"] = rate
            with torch.cuda.graph(graph):
                optimizer.step()
        rate.fill_(lr)
        graph.replay()
    return params, optimizer


@pytest.mark.gpu
def test_captured_equals_eager_to_the_bit() -> None:
    rates = [1e-2 * 0.9**i for i in range(23)]
    replayed, optimizer = captured(rates)
    eager, expected = captured(rates, n_eager=23)
    torch.testing.assert_close(replayed, eager, rtol=0, atol=0)
    mirror = HalfMirror.of(replayed[0])
    assert mirror is not None
    assert torch.equal(mirror.copy, replayed[0].half())
    for p, q in zip(replayed, eager, strict=True):
        torch.testing.assert_close(optimizer.state[p], expected.state[q], rtol=0, atol=0)
    assert optimizer.state[replayed[0]]["step"] == 22
    assert int(optimizer.skipped) == 1


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device() -> None:
    params = parameters("cuda")
    optimizer = FusedAdam(groups(params), **OPTIONS, ema_decay=0.9)
    scaled, amp = fused(groups(parameters("cuda"))), torch.amp.GradScaler("cuda")
    for p in [*params, *(p for g in scaled.param_groups for p in g["params"])]:
        p.grad = torch.ones_like(p)
    amp.scale(torch.zeros((), device="cuda"))
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
            amp.step(scaled)
            amp.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_runs_on_the_current_stream() -> None:
    stream, expected = torch.cuda.Stream(), parameters("cuda")
    params = parameters("cuda")
    for p, q in zip(params, expected, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    fused(expected).step()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for p in params:
            p.grad.mul_(0)  # type: ignore[union-attr]
        torch.cuda._sleep(10_000_000)
        for p in params:
            p.grad.add_(1)  # type: ignore[union-attr]
        fused(params).step()
    stream.synchronize()
    torch.testing.assert_close(params, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_large_parameters() -> None:
    """A table of the usual size, in full: whatever block it falls in, each entry is updated once."""
    ours, theirs = (nn.Parameter(torch.zeros(12_599_920, device="cuda")) for _ in range(2))
    optimizer, expected = FusedAdam([ours], **OPTIONS), Adam([theirs], **OPTIONS, fused=True)
    for step in range(3):
        ours.grad = theirs.grad = torch.randn(len(ours), device="cuda", generator=torch.Generator("cuda").manual_seed(step))
        optimizer.step()
        expected.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
